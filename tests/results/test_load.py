"""Sweeps read by path, each curve with the command that repeats it."""

import json

import pytest

from kvexp.errors import ConfigError
from kvexp.report.content import build_content
from kvexp.report.speedups import judge_points
from kvexp.results import load
from kvexp.results.compare import compare
from kvexp.results.export import encode
from kvexp.results.merge import GPUS, PROCESSES, merge_repetitions
from kvexp.results.verdict import judge_processes
from tests.helpers.compose import conf_dir, options
from tests.helpers.recorded_rows import curve, refused, row, sweep

RESULTS = conf_dir().parent / "docs" / "results"
DOCUMENTED = sorted(RESULTS.glob("*/*.jsonl"))


def test_a_sweeps_rows_know_its_name_and_the_command_that_repeats_them(tmp_path):
    folder = sweep(
        tmp_path / "2026-11-21" / "10-00", [curve({1: 2.0, 2: 3.0}), curve({1: 4.0}, impl="triton")]
    )
    found = load.read([folder], tmp_path)
    assert [row["impl"] for row in found] == ["cuda", "cuda", "triton"]
    assert {row["sweep"] for row in found} == {"2026-11-21/10-00"}
    assert found[2]["command"] == "python -m kvexp impl=triton 'workload.num_tokens=[1,2]'"


def test_without_hydras_file_the_command_says_all_that_the_rows_say(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = curve({1: 2.0, 8: 3.0}, impl="triton", impl_options='{"num_warps":4}')
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = load.read([file], tmp_path)[0]["command"]
    for words in ("impl=triton", "impl.num_warps=4", "workload.num_heads=8", "'workload.num_tokens=[1,8]'"):
        assert words in command


def test_the_last_sweep_is_read_where_none_is_named(tmp_path):
    for day in ("2026-11-20", "2026-11-21"):
        sweep(tmp_path / day / "10-00", [[row(host=day)]])
    assert [row["host"] for row in load.read([], tmp_path)] == ["2026-11-21"]


def test_a_folder_of_sweeps_gives_each_file_once(tmp_path):
    first = sweep(tmp_path / "a" / "1", [[row()]])
    sweep(tmp_path / "a" / "2", [[row()]])
    assert [row["sweep"] for row in load.read([first, tmp_path], tmp_path)] == ["a/1", "a/2"]


def test_jobs_come_in_their_numbers_order(tmp_path):
    folder = sweep(tmp_path / "s" / "1", [[row(seed=number)] for number in range(11)])
    assert [row["seed"] for row in load.read([folder], tmp_path)] == list(range(11))


def test_the_last_attempt_at_a_point_counts(tmp_path):
    folder = sweep(tmp_path / "s" / "1", [[refused("failed", "boom"), row(7.0)]])
    assert [row["latency_us"] for row in load.read([folder], tmp_path)] == [7.0]


def test_an_attempt_in_a_later_folder_of_the_sweep_counts_whatever_its_kernel(tmp_path):
    tries = [refused("failed", "boom", impl_hash="a"), row(7.0, impl_hash="b")]
    folder = sweep(tmp_path / "s" / "1", [[one] for one in tries])
    assert [row["latency_us"] for row in load.read([folder], tmp_path)] == [7.0]


def test_repetitions_other_sweeps_and_other_workloads_are_no_further_attempts(tmp_path):
    apart = [row(workload="mine"), *(row(repetition=number) for number in (1, 2))]
    for name in ("1", "2"):
        sweep(tmp_path / "s" / name, [[one] for one in apart])
    assert len(load.read([tmp_path], tmp_path)) == 6


@pytest.mark.parametrize(
    ("tries", "shown"),
    [
        ([row(us) for us in (3.0, 1.0, 2.0)], 2.0),
        ([row(us) for us in (4.0, 1.0, 3.0, 2.0)], 2.0),
        ([row(1.0), refused("failed", "boom"), row(2.0)], "boom"),
        ([refused("skipped", "no"), row(1.0)], 1.0),
        ([refused("verified", "interpreted")] * 3, "interpreted"),
    ],
)
def test_merged_repetitions_give_a_wrong_row_or_the_median(tries, shown):
    repeated = [one | {"repetition": number} for number, one in enumerate(tries, 1)]
    (found,) = merge_repetitions([*repeated])
    assert shown in (found["latency_us"], found["reason"])
    assert "repetition" not in found
    assert found[PROCESSES] == sum(one["status"] == "ok" for one in tries)


def test_a_merged_row_has_the_disturbances_of_all_processes():
    repeated = [
        row(3.0, repetition=1, throttled="sw_power_cap, hw_slowdown", other_processes=1),
        row(2.0, repetition=2, throttled="", other_processes=None),
        row(1.0, repetition=3, throttled="hw_slowdown", other_processes=2),
    ]
    (found,) = merge_repetitions(repeated)
    assert (found["latency_us"], found["throttled"]) == (2.0, "sw_power_cap, hw_slowdown")
    assert found["other_processes"] == 2
    (quiet,) = merge_repetitions([repeated[1]])
    assert (quiet["throttled"], quiet["other_processes"]) == ("", None)


def test_a_merged_row_has_each_process_s_latency_and_interval_in_the_order_of_the_rounds():
    rounds = [row(us, repetition=number, sweep="s") for number, us in ((3, 1.0), (1, 3.0), (2, 2.0))]
    (found,) = merge_repetitions(rounds)
    assert found["latencies_us"] == (3.0, 2.0, 1.0)
    assert found["intervals_us"] == tuple((0.998 * us, 1.002 * us) for us in (3.0, 2.0, 1.0))
    assert found["latency_us"] == 2.0


def test_rounds_on_several_gpus_are_of_one_point_and_judged_gpu_by_gpu():
    """As a report shows them: one line of all GPUs, whose level is no noise."""
    levels = [("GPU-1", 10.0), ("GPU-2", 12.0)] * 3
    sides = [
        [
            row(level * factor, repetition=number, device_uuid=gpu, num_tokens=1024, impl=impl)
            for number, (gpu, level) in enumerate(levels, 1)
        ]
        for impl, factor in (("cuda", 1.0), ("triton", 1.03))
    ]
    merged = merge_repetitions([*sides[0], *sides[1]])
    assert [point[PROCESSES] for point in merged] == [6, 6]
    assert merged[0][GPUS] == ("GPU-1", "GPU-2") * 3
    found = judge_points(*merged)
    assert found.word == "slower"
    assert found == judge_processes(*sides, in_one_sweep=True)


def test_points_of_two_sweeps_are_not_merged():
    assert len(merge_repetitions([row(sweep="a"), row(sweep="b"), row(sweep="b", workload="mine")])) == 3


@pytest.mark.parametrize(("column", "value"), [("latency_us", float("inf")), ("num_tokens", 0)])
def test_an_exported_file_is_checked_like_rows(tmp_path, column, value):
    file = tmp_path / "points.parquet"
    made = [{**one, "sweep": "s", "command": "c"} for one in curve({1: 2.0, 2: 3.0}, repetition=1)]
    rows = [made[0] | {column: value}, {**made[1], "repetition": None}]
    file.write_bytes(encode(rows, "parquet"))
    with pytest.raises(ConfigError, match=rf"points\.parquet, row 1: {column} cannot be"):
        load.read([file], tmp_path)
    file.write_bytes(encode(rows[1:], "parquet"))
    (found,) = load.read([file], tmp_path)
    assert found == found | rows[1]


def test_a_path_without_a_sweep_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; give a sweep's folder"):
        load.read([tmp_path / "gone"], tmp_path)
    with pytest.raises(ConfigError, match=r"holds no rows\.jsonl; give a sweep's folder"):
        load.read([tmp_path], tmp_path)
    with pytest.raises(ConfigError, match="there is no sweep below"):
        load.read([], tmp_path)
    (tmp_path / "rows.jsonl").write_text("[1]\n{}\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 1"):
        load.read([tmp_path], tmp_path)


def test_the_command_has_the_flags_that_its_sweep_was_typed_with(tmp_path):
    folder = sweep(tmp_path / "s" / "1", [[row()]])
    typed = {"overrides": ["impl=cuda,triton"], "flags": ["--multirun", "--config-dir", "my_conf"]}
    (folder / "command.json").write_text(json.dumps(typed))
    assert load.read([folder], tmp_path)[0]["command"] == (
        "python -m kvexp --config-dir my_conf impl=cuda 'workload.num_tokens=[1,2]'"
    )


BOMB = "".join(f"- &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(20))


@pytest.mark.parametrize(
    "content",
    ["- a: [", "7", b"\xff", "- 7", "[" * 5000, BOMB],
    ids=["torn", "number", "binary", "numbers", "nested", "bomb"],
)
def test_a_broken_file_of_hydras_is_named(tmp_path, content):
    folder = sweep(tmp_path / "s" / "1", [[row()]])
    file = folder / "0" / ".hydra" / "overrides.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"overrides\.yaml holds no overrides"):
        load.read([folder], tmp_path)


def test_a_password_is_in_no_command(tmp_path):
    folder = sweep(tmp_path / "s" / "1", [[row()]])
    (folder / "0" / ".hydra" / "overrides.yaml").write_text("- tracking.uri=http://maria:secret@host:5000\n")
    assert load.read([folder], tmp_path)[0]["command"] == "python -m kvexp"


def test_of_a_kernel_changed_between_repetitions_the_last_state_counts():
    states = [(1.0, "a"), (2.0, "a"), (5.0, "b"), (7.0, "b"), (6.0, "b")]
    repeated = [
        row(us, repetition=number, impl_hash=sources) for number, (us, sources) in enumerate(states, 1)
    ]
    (found,) = merge_repetitions(repeated)
    assert (found["latency_us"], found["processes"]) == (6.0, 3)


@pytest.mark.parametrize("file", DOCUMENTED, ids=lambda file: f"{file.parent.name} {file.stem}")
def test_the_documents_rows_are_read_and_reported_whatever_their_layout_is_called_today(file, tmp_path):
    found = load.read([file], tmp_path)
    # A point that scatters more than processes differ by cannot be told from itself.
    assert {point.word for point in compare(found, found, in_one_sweep=True)} <= {"same", "ambiguous"}
    content = build_content(found)
    assert sum(len(table.lines) for _, tables in content.sections[0].panels for table in tables) > 0
    there = {one["layout"] for one in found if one["command"]}
    assert there == {one["layout"] for one in found} & set(options("layout"))


def test_head_major_rows_from_before_the_caches_were_contiguous_are_joined_with_no_others():
    file = RESULTS / "2026-11-28-nvidia-h200" / "targets.jsonl"
    old = [one for one in load.read([file], file.parent) if one["op"] == "reshape_and_cache"]
    assert {one["layout"] for one in old} == {"head_major_interleaved"}
    assert "head_major_interleaved" not in options("layout")
    new = [one | {"layout": "head_major"} for one in old]
    with pytest.raises(ConfigError, match="the two share no case"):
        compare(old, new)
