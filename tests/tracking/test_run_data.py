import pytest

from kvexp.tracking import run_data


def test_a_run_has_the_name_that_its_sweep_gave_the_curve(measure):
    assert run_data.name(measure(curve="HND warps=4")[0]) == "HND warps=4"
    assert run_data.name(measure()[0]) == "cuda HND bfloat16"


def test_params_are_the_case_without_num_tokens(measure):
    params = run_data.params(measure()[0])
    assert params["num_heads"] == "128"
    assert (params["scale"], params["padding"], params["num_layers"]) == ("per_tensor", "0.0", "1")
    assert params["layout_reason"] == "connector=nixl asks for HND"
    assert params["option.threads"] == "256"
    assert not {"impl_options", "op_options"} & set(params)
    own = run_data.params(measure(op_options='{"scale_fmt":"ue8m0"}')[0])
    assert own.items() - params.items() == {("op_options", '{"scale_fmt":"ue8m0"}')}
    assert "num_tokens" not in params
    assert "latency_us" not in params


def test_tags_are_the_environment_without_the_outcome(measure):
    assert run_data.environment(measure()) == {
        "device_name": "NVIDIA H200",
        "compute_capability": "9.0",
        "sm_count": "132",
        "source_hash": "5" * 16,
        "git_commit": "a" * 40,
        "git_dirty": "false",
    }


def test_a_column_that_changes_along_the_curve_is_no_tag(measure):
    rows = measure()
    rows[3]["surprise"] = 4
    rows[4]["surprise"] = 5
    assert "surprise" not in run_data.environment(rows)


def test_a_reason_is_a_tag_when_all_rows_share_it(measure):
    assert run_data.tags(measure(*["skipped"] * 16))["reason"] == "it needs an NVIDIA GPU"
    assert "reason" not in run_data.tags(measure("skipped"))


def test_what_of_the_contract_is_kept_is_a_tag(measure):
    assert run_data.tags(measure(contract="past_end"))["contract"] == "past_end"


def test_what_disturbed_any_point_is_a_tag_of_the_curve(measure):
    rows = measure()
    rows[2] |= {"throttled": "sw_power_cap", "other_processes": 1}
    rows[5] |= {"throttled": "sw_power_cap, hw_thermal", "other_processes": 3}
    tags = run_data.tags(rows)
    assert (tags["throttled"], tags["other_processes"]) == ("sw_power_cap, hw_thermal", "3")


def test_a_curve_that_nothing_disturbed_has_no_tag_of_it(measure):
    rows = [row | {"throttled": "", "other_processes": 0, "power_w": 500.0} for row in measure()]
    assert not {"throttled", "other_processes", "power_w"} & set(run_data.tags(rows))


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([], "ok"),
        (["skipped"], "ok"),
        (["failed"], "failed"),
        (["failed", "incorrect"], "incorrect"),
        (["skipped"] * 16, "skipped"),
        (["skipped"] * 15 + ["verified"], "verified"),
    ],
)
def test_a_curves_status_is_what_is_wrong_or_the_best_it_reached(measure, statuses, status):
    assert run_data.status(measure(*statuses)) == status


def test_only_ok_rows_have_metrics(measure):
    points = list(run_data.metrics(measure("failed", "skipped", "verified", "incorrect")))
    assert min(point.step for point in points) == 2**5


def test_a_metric_stands_at_its_num_tokens_and_its_time(measure):
    point = next(p for p in run_data.metrics(measure()) if p.key == "latency_us_p80" and p.step == 8)
    assert point.value == pytest.approx(0.88)
    assert point.timestamp_ms == 1795266000250


def test_what_was_not_measured_has_no_metric(measure):
    assert "host_us" not in {point.key for point in run_data.metrics(measure())}


def test_no_options_are_no_params(measure):
    assert not [name for name in run_data.params(measure(impl_options="")[0]) if "option." in name]


def test_a_repeated_curve_says_which_time_it_is(measure):
    first, second = measure(repetition=1)[0], measure(repetition=2)[0]
    assert run_data.name(first) == "cuda HND bfloat16"
    assert run_data.name(second) == "cuda HND bfloat16 #2"
    assert run_data.params(second)["repetition"] == "2"
    assert "repetition" not in run_data.environment([second])


def test_a_curve_ended_when_its_last_point_had_gone_through_its_parts(measure):
    rows = measure(curve_setup_s=9.0, setup_s=1.0, verify_s=0.25, timing_s=None)
    assert run_data.ended_ms(rows) == 1795266000250 + 1250


def test_scalars_hold_the_latency_at_the_tokens_that_the_curve_has(measure):
    scalars = run_data.scalars(measure())
    assert scalars["latency_us_at_64_tokens"] == pytest.approx(6.4)
    assert scalars["latency_us_at_4096_tokens"] == pytest.approx(409.6)
    assert "latency_us_at_1_tokens" not in scalars
    assert set(run_data.LATENCIES) - set(scalars) == {"latency_us_at_1_tokens"}


def test_a_scalar_is_short_enough_for_a_table(measure):
    rows = [row | {"latency_us": 12.3456789, "gb_per_s": 4321.98765} for row in measure()]
    scalars = run_data.scalars(rows)
    assert (scalars["latency_us_at_max_tokens"], scalars["peak_gb_per_s"]) == (12.346, 4322.0)


def test_a_run_is_described_by_its_own_numbers(measure):
    assert run_data.describe(measure("skipped", repetition=3)) == (
        "Points: 15 ok and 1 skipped. Latency: 0.4 µs at 4 tokens to 6554 µs at 65,536 tokens. "
        "Best share of an equal copy's speed: 95 %. Measured by process 3 of its curve."
    )
    assert run_data.describe(measure("skipped")[:1]) == "Points: 1 skipped."


def test_scalars_sum_the_curve_up(measure):
    scalars = run_data.scalars(measure("skipped"))
    assert scalars["latency_us_at_min_tokens"] == pytest.approx(0.4)
    assert scalars["latency_us_at_max_tokens"] == pytest.approx(6553.6)
    assert scalars["best_copy_fraction"] == pytest.approx(0.95)
    assert not {"num_heads", "block_size"} & set(scalars)  # params
    assert (scalars["points_ok"], scalars["points_skipped"], scalars["points_failed"]) == (15, 1, 0)
