import json
import re
from dataclasses import replace
from itertools import product

import pytest
import torch

from kvexp import pipeline, timer, workload
from kvexp.errors import ConfigError
from tests import composed

ENVIRONMENT = {"device_name": "a CPU", "git_dirty": False}
QUICK = ("timer=wall_clock", "timer.warmup=1", "timer.min_samples=3", "timer.max_samples=5")

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets where there is no GPU")


def curve(*overrides, how=None, **options):
    """The experiment on the CPU, verified only; written by the class `how` of tests.wrong, if any."""
    typed = {text.partition("=")[0] for text in overrides}
    usual = [text for text in ("timer=none",) if text.partition("=")[0] not in typed]
    made = composed.experiment("workload=tiny", "impl=torch", "device=cpu", *usual, *overrides)
    if how:
        made = replace(
            made, impl=replace(made.impl, name="wrong", target=f"tests.wrong.{how}", options=options)
        )
    return made.resolved("cpu")


def measured(*overrides, how=None, **options):
    return list(pipeline.run(curve(*overrides, how=how, **options), ENVIRONMENT))


def outcomes(*overrides, how=None, **options):
    return [point.status for point in measured(*overrides, how=how, **options)]


def expected(impl, kv_cache_dtype):
    """Status on a CPU, and how its reason begins."""
    if impl == "cuda":
        return "skipped", "impl=cuda needs an NVIDIA GPU"
    if impl == "triton" and kv_cache_dtype != "auto":
        return "skipped", "impl=triton with an fp8 cache needs a GPU: Triton's interpreter"
    if impl == "triton":
        return "verified", "interpreted"
    return "verified", "timer=none"


GROUPS = ("impl", "op", "layout", "dtype", "kv_cache_dtype")


@interpreted
@pytest.mark.parametrize(GROUPS, list(product(*map(composed.options, GROUPS))))
def test_every_implementation_holds_the_law_or_says_why_not(impl, op, layout, dtype, kv_cache_dtype):
    chosen = (impl, op, layout, dtype, kv_cache_dtype)
    points = measured(*(f"{group}={name}" for group, name in zip(GROUPS, chosen, strict=True)))
    assert [point.case.num_tokens for point in points] == [1, 3, 16, 50]
    for point in points:
        status, reason = expected(impl, kv_cache_dtype)
        assert (point.status, point.reason[: len(reason)]) == (status, reason)


class TestAWrongImplementation:
    @pytest.mark.parametrize(
        ("how", "reason"),
        [
            (
                "Swapped",
                r"[\d.]+ % of the 1024 elements written to key_cache are wrong, the first at token 0, "
                r"head 0, element 0 \(slot \d+\): 0x[0-9a-f]{4} instead of 0x[0-9a-f]{4}",
            ),
            ("Spilling", r"a byte outside the written slots changed, byte \d+ of the 40960 of the cache .*"),
            (
                "Idle",
                r"100 % of the 1024 elements written to key_cache are wrong, the first at token 0, head 0, "
                r"element 0 \(slot \d+\): 0xa5a5 instead of 0x[0-9a-f]{4}",
            ),
            (
                "OneBit",
                r"1\.56 % of the 1024 elements written to value_cache are wrong, the first at token 0, "
                r"head 1, element 31 \(slot \d+\): 0x[0-9a-f]{4} instead of 0x[0-9a-f]{4}",
            ),
        ],
    )
    def test_is_incorrect_with_what_is_wrong_and_has_no_latency(self, how, reason):
        points = measured(*QUICK, how=how)
        assert [point.status for point in points] == ["incorrect"] * 4
        assert all(point.statistics is None and point.samples_us == () for point in points)
        assert re.fullmatch(reason, points[0].reason), points[0].reason

    @pytest.mark.parametrize("how", ["Meddling", "Rerouting"])
    def test_that_changes_its_inputs_is_incorrect(self, how):
        for point in measured("workload.num_tokens=[16,50]", how=how):
            assert point.status == "incorrect"
            assert point.reason == "the call changed its inputs: keys, values, slots or scales"

    @pytest.mark.parametrize(
        ("how", "reason"),
        [("Lazy", "100 % of the"), ("Careless", "a byte outside the written slots changed")],
    )
    def test_that_is_right_the_first_time_alone_is_incorrect(self, how, reason):
        points = measured("timer=wall_clock", "timer.max_seconds=0.01", "timer.min_samples=2", how=how)
        assert {point.status for point in points} == {"incorrect"}
        assert points[0].reason.startswith(f"right at first, but not while it was timed: {reason}")

    def test_one_bit_is_told_apart_in_its_bytes(self):
        reason = measured(how="OneBit")[0].reason
        found, asked = (int(code, 16) for code in re.findall(r"0x([0-9a-f]{4})", reason))
        assert found ^ asked == 1

    @pytest.mark.parametrize("layout", composed.options("layout"))
    @pytest.mark.parametrize("how", ["Swapped", "Spilling", "Idle", "OneBit"])
    def test_leaves_a_clean_cache_to_the_next_point(self, how, layout):
        found = outcomes(f"layout={layout}", how="WrongAtFirst", wrong=how)
        assert found == ["incorrect", "verified", "verified", "verified"]

    @pytest.mark.parametrize("dtype", composed.options("dtype"))
    def test_an_fp8_cache_that_was_not_scaled_is_incorrect(self, dtype):
        points = measured("kv_cache_dtype=fp8", f"dtype={dtype}", how="Unscaled")
        assert [point.status for point in points] == ["incorrect"] * 4
        assert re.search(r"0x[0-9a-f]{2} instead of 0x[0-9a-f]{2}$", points[3].reason)

    @pytest.mark.parametrize("before", [1, 2, 4096, -1, -4096])
    def test_a_byte_beside_the_cache_is_found(self, before):
        at = 4096 - before if before > 0 else 40960 - 4096 - before - 1
        point = measured(how="Overrunning", before=before)[0]
        assert point.status == "incorrect"
        assert point.reason.startswith(
            f"a byte outside the written slots changed, byte {at} of the 40960 of the cache and its guards"
        )

    @pytest.mark.parametrize("nth", [1, 2, 4])
    def test_every_slot_mapping_that_is_timed_was_verified(self, nth):
        (point,) = measured(*QUICK, "workload.num_tokens=16", how="Misaddressed", nth=nth)
        assert point.status == "incorrect"
        assert "of the 8192 elements written to key_cache are wrong" in point.reason


class TestAnErrorOfAPoint:
    def test_is_its_reason_and_the_next_point_goes_on(self):
        points = measured(how="Raising")
        assert [point.status for point in points] == ["failed", "verified", "verified", "verified"]
        assert points[0].reason == "ZeroDivisionError: no head is left to divide by"

    def test_a_refusal_after_the_rows_were_written_leaves_a_clean_cache(self):
        points = measured(how="Refusing")
        assert [point.status for point in points] == ["skipped", "verified", "verified", "verified"]
        assert points[0].reason == "impl=refusing found out too late"

    def test_an_error_of_the_curve_is_every_point_s(self):
        made = curve()
        broken = replace(made, impl=replace(made.impl, target="tests.wrong.Deadly"))
        points = list(pipeline.run(broken, ENVIRONMENT))
        assert [point.status for point in points] == ["failed"] * 4
        assert points[0].reason.startswith("TypeError: ")

    @pytest.mark.parametrize(
        ("target", "options", "sentence"),
        [
            ("kvexp.impl.torch.Torch", {"threads": 3}, "torch takes no option 'threads'"),
            ("kvexp.impl.torch.Missing", {}, "kvexp.impl.torch.Missing of torch cannot be found"),
            ("kvexp.nowhere.Torch", {}, "kvexp.nowhere.Torch of torch cannot be found"),
            ("", {}, "the YAML of torch names no class under _target_"),
        ],
    )
    def test_what_is_wrong_on_every_machine_is_no_row(self, target, options, sentence):
        made = curve()
        broken = replace(made, impl=replace(made.impl, target=target, options=options))
        with pytest.raises(ConfigError) as raised:
            list(pipeline.run(broken, ENVIRONMENT))
        assert str(raised.value) == sentence

    def test_an_implementation_without_the_op_is_skipped(self):
        made = curve()
        other = replace(made, impl=replace(made.impl, target="tests.wrong._Torch"))
        points = list(pipeline.run(other, ENVIRONMENT))
        assert points[0].status == "skipped"
        assert points[0].reason == "impl=wrong has no reshape_and_cache_flash"


class TestATimedPoint:
    def test_has_a_latency_of_all_its_samples_and_no_reason(self):
        for point in measured(*QUICK):
            assert (point.status, point.reason) == ("ok", "")
            assert point.statistics == timer.summarise(point.samples_us)
            assert 3 <= len(point.samples_us) <= 5
            assert point.statistics.latency_us > 0
            assert point.copy_us > 0
            assert point.case.timer == "wall_clock"
            assert (point.host_us, point.empty_kernel_us, point.cache_state) == (None, None, None)

    def test_declares_the_bytes_that_must_move(self):
        points = measured(*QUICK, "dtype=half", "kv_cache_dtype=fp8")
        items = [n * 2 * 2 * 32 for n in (1, 3, 16, 50)]
        slots = [8 * n for n in (1, 3, 16, 50)]
        assert [point.bytes_moved for point in points] == [
            3 * i + s for i, s in zip(items, slots, strict=True)
        ]

    def test_a_row_s_columns_are_those_of_a_skipped_one(self):
        timed = measured(*QUICK)[0].row()
        skipped = measured("impl=cuda", *QUICK)[0].row()
        assert list(timed) == list(skipped)
        assert timed["device_name"] == "a CPU"

    def test_two_points_of_a_curve_do_not_disturb_each_other(self):
        points = measured(*QUICK, "workload.num_tokens=[50,3,1,49]", "kv_cache_dtype=fp8")
        assert [point.status for point in points] == ["ok"] * 4

    def test_no_cuda_event_is_recorded_on_a_cpu(self, monkeypatch):
        def refused(*_):
            raise AssertionError("timer.cuda_event was called on a CPU")

        monkeypatch.setattr(timer, "cuda_event", refused)
        made = composed.experiment("workload=tiny", "impl=torch", "device=cpu", *QUICK[1:])
        points = list(pipeline.run(made.resolved("cpu"), ENVIRONMENT))
        assert [(point.status, point.case.timer, point.case.mode) for point in points] == [
            ("ok", "wall_clock", "no_graph")
        ] * 4

    def test_says_when_it_was_begun_with_the_offset(self):
        begun = [point.started_at for point in measured(how="Raising")]
        assert begun == sorted(begun)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", at) for at in begun)

    def test_a_point_is_known_before_the_next_is_begun(self):
        points = pipeline.run(curve(), ENVIRONMENT)
        assert next(points).case.num_tokens == 1
        points.close()


class TestWhatCannotBeDoneHere:
    def test_more_tokens_than_slots_skip_that_point_alone(self):
        points = measured("workload.num_tokens=[1,128,129]")
        assert [point.status for point in points] == ["verified", "verified", "skipped"]
        assert points[2].reason == "num_tokens 129 exceeds the 128 slots of the cache (8 blocks of 16)"

    def test_a_curve_of_too_many_tokens_allocates_nothing(self, monkeypatch):
        monkeypatch.setattr(workload, "_free_bytes", lambda device: 0)
        points = measured("workload.num_tokens=[129,130]")
        assert [point.reason.partition(" of")[0] for point in points] == [
            "num_tokens 129 exceeds the 128 slots"
        ] * 2

    def test_fp8_needs_a_head_size_of_whole_sixteens(self):
        points = measured("kv_cache_dtype=fp8", "workload.head_size=40")
        assert {(point.status, point.reason) for point in points} == {
            ("skipped", "head_size 40 is not a multiple of 16, which kv_cache_dtype=fp8_e4m3 needs")
        }

    @pytest.mark.parametrize(
        ("override", "reason"),
        [
            ("mode=cudagraph", "mode=cudagraph needs a GPU; on device=cpu use mode=no_graph"),
            ("timer=cuda_event", "timer=cuda_event needs a GPU; on device=cpu use timer=wall_clock"),
        ],
    )
    def test_what_only_a_gpu_has_is_skipped_on_a_cpu(self, override, reason):
        assert {(point.status, point.reason) for point in measured(override)} == {("skipped", reason)}

    def test_a_cache_beyond_the_memory_says_how_many_blocks_would_fit(self):
        (point,) = measured("workload.num_blocks=1000000000000", "workload.num_tokens=1")
        assert point.status == "skipped"
        needed, free, fits = re.fullmatch(
            r"the cache of 1000000000000 blocks and its inputs need (\d+) bytes and cpu has (\d+) free: "
            r"workload\.num_blocks=(\d+) would fit",
            point.reason,
        ).groups()
        assert int(needed) > int(free) > 0
        assert int(fits) < 10**12

    @pytest.mark.parametrize("layout", composed.options("layout"))
    @pytest.mark.parametrize("kv_cache_dtype", composed.options("kv_cache_dtype"))
    def test_the_number_that_would_fit_fits_and_one_more_does_not(self, monkeypatch, layout, kv_cache_dtype):
        monkeypatch.setattr(workload, "_free_bytes", lambda device: workload.WORKING_BYTES + (1 << 20))
        asked = (f"layout={layout}", f"kv_cache_dtype={kv_cache_dtype}", "workload.num_tokens=[1,7]")
        refused = measured(*asked, "workload.num_blocks=100000")
        fits = int(re.search(r"workload\.num_blocks=(\d+) would fit", refused[0].reason)[1])
        assert outcomes(*asked, f"workload.num_blocks={fits}") == ["verified"] * 2
        assert outcomes(*asked, f"workload.num_blocks={fits + 1}") == ["skipped"] * 2

    def test_no_advice_is_given_where_not_one_block_fits(self, monkeypatch):
        monkeypatch.setattr(workload, "_free_bytes", lambda device: workload.WORKING_BYTES)
        (point,) = measured("workload.num_tokens=1")
        assert point.reason.endswith(": no number of blocks would fit")

    def test_k_and_v_of_different_head_sizes_are_skipped(self):
        (point,) = measured("workload.head_size_v=64", "workload.num_tokens=1")
        assert point.status == "skipped"
        assert point.reason == ("op=reshape_and_cache_flash writes K and V of one head size, not 32 and 64")


def test_every_row_is_strict_json():
    points = [*measured(*QUICK), *measured("impl=cuda"), *measured(how="Idle"), *measured(how="Raising")]
    for point in points:
        assert json.loads(json.dumps(point.row(), allow_nan=False)) == point.row()
