"""Two sweeps, or two values of an axis, compared point by point."""

import json

import pytest

from kvexp import cli
from kvexp.case import Case
from kvexp.column import columns_of
from kvexp.errors import ConfigError
from kvexp.results.compare import check_cases, compare, select_value
from tests.helpers.recorded_rows import curve, refused, row, sweep


def words(baseline, candidate, **how):
    """The verdicts on five processes of each row."""
    return [(point.word, point.num_tokens) for point in compare(baseline * 5, candidate * 5, **how)]


def test_the_worst_comes_first():
    baseline = curve(dict.fromkeys((512, 513, 514, 515, 516, 517), 10.0))
    candidate = [
        *curve({512: 10.0, 513: 9.0, 514: 11.0, 515: 12.0, 518: 1.0}),
        refused("incorrect", "wrong bytes", num_tokens=516),
    ]
    assert words(baseline, candidate) == [
        ("broken", 516), ("missing", 517), ("slower", 515), ("slower", 514), ("new", 518), ("same", 512),
        ("faster", 513),
    ]  # fmt: skip


def test_a_point_that_is_skipped_now_is_missing_with_its_reason():
    (point,) = compare([row()], [refused("skipped", "no GPU")])
    assert (point.word, point.note, point.baseline_us) == ("missing", "skipped: no GPU", 10.0)


def test_what_neither_could_measure_is_left_out():
    assert words([row(), refused("skipped", "no", seed=1)], [row(), refused("skipped", "no", seed=1)]) == [
        ("same", 64)
    ]


def test_what_is_right_in_both_but_timed_in_neither_is_the_same():
    assert words([refused("verified", "x")], [refused("verified", "x")]) == [("same", 64)]


def test_one_wrong_process_of_several_is_enough_to_be_broken():
    assert words([row()] * 3, [row(), refused("failed", "boom"), row()]) == [("broken", 64)]


def test_a_point_that_not_every_process_timed_is_missing_and_no_verdict_on_the_others():
    refusals = [refused("skipped", "no room") for _ in range(2)]
    (point,) = compare([row()] * 5, [row(), refusals[0], row(), refusals[1], row()])
    assert (point.word, point.verdict) == ("missing", None)
    assert point.note == "in 2 of 5 processes skipped: no room"


def test_a_note_gives_unequal_numbers_of_processes():
    assert [point.note for point in compare([row()] * 3, [row()] * 5)] == ["3 and 5 processes"]
    assert [point.note for point in compare([row()] * 5, [row()] * 5)] == [""]


def test_the_workloads_name_is_no_part_of_the_case():
    assert words([row(workload="seed")], [row(workload="mine")]) == [("same", 64)]


def test_rows_of_one_case_count_as_processes():
    before = [row(us, num_tokens=512) for us in (10.0, 10.02, 10.04, 9.98, 9.96)]
    after = [row(1.03 * one["latency_us"], num_tokens=512) for one in before]
    (point,) = compare(before, after)
    assert point.word == "slower"
    assert (point.baseline_us, point.candidate_us) == pytest.approx((10.0, 10.3), rel=1e-5)
    assert compare(before[:1], after[:1])[0].word == "ambiguous"
    assert compare(before, before)[0].word == "same"


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_ratio_is_the_quotient_of_the_latencies_beside_it(processes):
    before, after = (
        [row(us) for us in latencies[:processes]] for latencies in ((10, 30, 11, 9, 12), (20, 21, 50, 19, 8))
    )
    (point,) = compare(before, after)
    assert point.verdict.ratio == pytest.approx(point.candidate_us / point.baseline_us)


@pytest.mark.parametrize(("column", "other"), [("device_name", "NVIDIA H100"), ("driver", "590")])
def test_another_gpu_or_driver_is_refused_unless_it_is_asked_for(column, other):
    with pytest.raises(
        ConfigError, match=f"the baseline's {column} is .*--across compares them all the same"
    ):
        compare([row()], [row(**{column: other})])
    assert words([row()], [row(**{column: other})], across=True) == [("same", 64)]


def test_what_auto_means_on_each_device_is_no_difference_between_devices():
    cpu = {"device": "cpu", "device_name": "CPU", "mode": "no_graph", "timer": "wall_clock"}
    (point,) = compare([row()] * 3, [row(900.0, **cpu)] * 3, across=True)
    assert (point.word, point.verdict.ratio) == ("slower", pytest.approx(90.0))
    # The CPU's processes differ by 20 %, so that is what both are judged by.
    assert compare([row()] * 3, [row(12.0, **cpu)] * 3, across=True)[0].word == "ambiguous"
    with pytest.raises(ConfigError, match="mode is auto in the baseline and no_graph in the candidate"):
        compare([row()], [row(900.0, **cpu | {"mode": "no_graph", "device": "cuda:0"})], across=True)


def test_of_a_baseline_of_several_gpus_the_candidates_counts():
    baseline = [row(), row(5.0, device_name="NVIDIA H100")]
    (point,) = compare(baseline, [row()])
    assert point.baseline_us == 10.0
    with pytest.raises(ConfigError, match="the baseline's device_name is NVIDIA H100, NVIDIA H200 and"):
        compare(baseline, [row(device_name="NVIDIA B200")])


def test_which_of_equal_gpus_it_was_does_not_matter():
    assert words([row()], [row(device="cuda:3")]) == [("same", 64)]


def test_a_difference_within_that_of_equal_gpus_is_ambiguous():
    before, now = [row()] * 5, [row(10.5, device_uuid="GPU-2", device="cuda:1")] * 4
    (point,) = compare(before, now, in_one_sweep=True)
    assert (point.word, point.note) == ("ambiguous", "5 and 4 processes, another GPU")
    (point,) = compare(before, now, ignored=["device"], in_one_sweep=True)
    assert (point.word, point.note) == ("slower", "5 and 4 processes")


def test_what_shifts_a_sweep_is_shared_by_what_it_measured():
    before, now = [row()] * 5, [row(10.4)] * 5
    assert compare(before, now, in_one_sweep=True)[0].word == "slower"
    assert compare(before, now)[0].word == "ambiguous"


def test_equal_gpus_of_one_sweep_are_compared_separately():
    both = [row(), row(20.0, device="cuda:1")]
    assert words(both, both) == [("same", 64), ("same", 64)]
    assert words([both[0]], [both[1]], ignored=["device"]) == [("slower", 64)]


def test_two_that_share_no_case_are_refused_with_what_they_differ_in():
    with pytest.raises(ConfigError, match=r"share no case: .*; seed is 0 in the baseline and 1 in"):
        compare([row()], [row(seed=1)])
    with pytest.raises(ConfigError, match=r"equal choices and sizes$"):
        compare([], [row()])
    with pytest.raises(ConfigError, match="; num_tokens is 1, 2 in the baseline and 4 in the candidate"):
        compare([row(num_tokens=1), row(num_tokens=2)], [row(num_tokens=4)])
    with pytest.raises(ConfigError, match=r"equal choices and sizes$"):
        compare(
            [row(num_tokens=1), row(num_tokens=2, seed=1)], [row(num_tokens=2), row(num_tokens=1, seed=1)]
        )


def timed(**options):
    return row(timer_options=json.dumps({"cache": "auto", "inputs": "hot", "max_seconds": 2.0} | options))


def test_sweeps_that_sampled_for_another_time_are_compared():
    (point,) = compare([timed()], [timed(max_seconds=0.1, max_samples=50)])
    assert point.baseline_us == point.candidate_us == 10.0
    check_cases([timed()], [_case(timed(max_seconds=0.1))])


def test_of_two_timers_options_that_differ_the_sentence_names_the_one_that_matters():
    with pytest.raises(
        ConfigError, match=r"sizes; timer.cache is auto in the baseline and hot in the candidate$"
    ):
        compare([timed()], [timed(max_seconds=0.1, cache="hot")])


def _case(columns):
    return Case(**{column: columns[column] for column in columns_of(Case)})


def test_two_that_measured_nothing_are_refused():
    with pytest.raises(ConfigError, match="neither of the two measured anything"):
        compare([refused("skipped", "no GPU")], [refused("skipped", "no GPU")])


def test_a_value_of_an_axis_is_picked_by_its_word():
    rows = [row(), row(impl="triton")]
    assert select_value(rows, "impl", "triton") == rows[1:]
    with pytest.raises(ConfigError, match="impl=torch was not measured; there is cuda, triton"):
        select_value(rows, "impl", "torch")
    with pytest.raises(ConfigError, match="--axis speed is no choice of a curve"):
        select_value(rows, "speed", "1")


def test_a_value_that_stands_for_several_is_refused():
    rows = [row(impl_options=f'{{"warps":{warps}}}') for warps in (4, 8)]
    with pytest.raises(ConfigError, match="measured with several values of impl_options"):
        select_value(rows, "impl", "cuda")


@pytest.fixture
def sweeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep(tmp_path / "base" / "1", [curve({8: 2.0, 512: 10.0}), curve({8: 2.0, 512: 10.0}, impl="triton")])
    sweep(tmp_path / "now" / "1", [curve({8: 2.0, 512: 12.0}), curve({8: 2.0, 512: 10.0}, impl="triton")])


def test_the_command_prints_the_table_and_fails_on_slower(sweeps, capsys):
    assert cli.dispatch(["compare", "base", "now"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("slower ")
    assert lines[1].split()[-5:] == ["512", "10.0", "12.0", "1.200", "1.131–1.273"]
    assert lines[-1] == "1 slower, 3 ambiguous"


def test_what_fails_is_chosen(sweeps):
    assert cli.dispatch(["compare", "base", "now", "--fail-on", "broken,missing"]) == 0
    assert cli.dispatch(["compare", "base", "now", "--tolerance", "0.3"]) == 0


def test_two_values_of_one_sweep_are_compared(sweeps, capsys):
    typed = ["compare", "now", "--axis", "impl", "--baseline", "triton", "--candidate", "cuda"]
    assert cli.dispatch(typed) == 1
    out = capsys.readouterr().out
    assert "1 slower, 1 ambiguous" in out
    assert "triton" not in out


def test_of_two_values_the_last_sweep_is_the_default(sweeps, tmp_path, capsys):
    (tmp_path / "now").rename(tmp_path / "multirun")
    sweep(tmp_path / "multirun" / "2" / "1", [curve({8: 9.0}), curve({8: 2.0}, impl="triton")])
    assert cli.dispatch(["compare", "--axis", "impl", "--baseline", "cuda", "--candidate", "triton"]) == 0
    assert capsys.readouterr().out.endswith("1 faster\n")


def test_two_devices_are_compared_by_their_names(sweeps, tmp_path, capsys):
    other = {"device_name": "NVIDIA B200", "driver": "590"}
    sweep(tmp_path / "other" / "1", [curve({8: 2.0, 512: 5.0}, **other)])
    names = ["--axis", "device_name", "--baseline", "NVIDIA H200", "--candidate", "NVIDIA B200"]
    assert cli.dispatch(["compare", "base", "other", *names, "--fail-on", "slower"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split()[0] == "faster"
    assert lines[-1] == "2 missing, 1 ambiguous, 1 faster"
    assert cli.dispatch(["compare", "base", *names]) == 2
    assert "device_name=NVIDIA B200 was not measured; there is NVIDIA H200" in capsys.readouterr().err


def test_an_exported_file_is_a_baseline(sweeps, capsys):
    assert cli.dispatch(["export", "base", "--output", "base.parquet"]) == 0
    assert cli.dispatch(["compare", "base.parquet", "base"]) == 0
    assert capsys.readouterr().out.endswith("4 ambiguous\n")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["base"], "name two sweeps, or one and --axis"),
        (["base", "now", "--fail-on", "slow"], "--fail-on slow is no verdict; one of broken, missing"),
        (["base", "now", "--fail-on", ","], "--fail-on names no verdict, so nothing could fail"),
        (["base", "--axis", "impl"], "--axis impl needs two values, --baseline and --candidate"),
        (["base", "gone"], "gone does not exist; give a sweep's folder"),
        (["base", "now", "--tolerance", "x"], "--tolerance must be a fraction such as 0.02, not 'x'"),
        (["base", "now", "--tolerance", "-1"], "--tolerance must be a fraction such as 0.02, not '-1'"),
    ],
)
def test_what_is_typed_wrong_is_one_sentence(sweeps, capsys, typed, message):
    assert cli.dispatch(["compare", *typed]) == 2
    assert message in capsys.readouterr().err
