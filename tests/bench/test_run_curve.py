import json
import re
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

import kvexp.impl.torch
from kvexp.bench import run_curve
from kvexp.errors import ConfigError
from kvexp.measurement import SECONDS
from kvexp.statistics import summarise
from kvexp.timer.cuda_event import CudaEvent
from kvexp.workload import device_memory
from tests.helpers import compose, tiny_curve, wrong_impls

ENVIRONMENT = {"device_name": "a CPU", "git_dirty": False}
RULE = {"warmup": 1, "min_samples": 3, "max_samples": 5}
QUICK = {"timer": "wall_clock", "rule": RULE}


def measured(**chosen):
    return list(run_curve.run(tiny_curve.curve(**chosen), ENVIRONMENT))


def outcomes(**chosen):
    return [point.status for point in measured(**chosen)]


@pytest.mark.parametrize(("device", "trimmed"), [("cuda:0", 1), ("cpu", 0)])
def test_memory_is_given_back_after_each_point_on_a_gpu_whatever_happened(monkeypatch, device, trimmed):
    given = []
    monkeypatch.setattr(device_memory, "trim", lambda: given.append(1))
    curve = SimpleNamespace(
        impl=None, op=SimpleNamespace(name="any"), memory=SimpleNamespace(cache=None, fill=lambda: None)
    )
    for measured in (lambda curve, case: "right", lambda curve, case: 1 / 0):
        monkeypatch.setattr(run_curve.run_point, "measure_point", measured)
        run_curve._measure_point(curve, SimpleNamespace(device=device))
    assert len(given) == 2 * trimmed


class TestEachWorkload:
    """Whatever the slots, the padding and the rows, torch is right in every op."""

    @pytest.mark.parametrize("op", compose.cache_writes())
    @pytest.mark.parametrize("slots", compose.words("slots"))
    def test_of_slots_is_verified(self, op, slots):
        for num_blocks in (64, 57):
            assert outcomes(op=op, slots=slots, num_blocks=num_blocks) == ["verified"] * 4

    @pytest.mark.parametrize("op", compose.cache_writes())
    @pytest.mark.parametrize("padding_at", ["end", "scattered"])
    def test_of_padding_is_verified(self, op, padding_at):
        for padding in (0.1, 0.5, 0.99):
            assert outcomes(op=op, padding=padding, padding_at=padding_at) == ["verified"] * 4

    @pytest.mark.parametrize("op", compose.cache_writes())
    @pytest.mark.parametrize("rows", compose.words("rows"))
    def test_of_rows_is_verified(self, op, rows):
        for kv_cache_dtype in compose.formats():
            chosen = {"op": op, "rows": rows, "kv_cache_dtype": kv_cache_dtype, "num_query_heads": 3}
            assert outcomes(**chosen, extra_tokens=2) == ["verified"] * 4

    @pytest.mark.parametrize(("op", "layout"), compose.pairs())
    def test_of_layers_is_verified(self, op, layout):
        for num_layers in (2, 3):
            assert outcomes(op=op, layout=layout, num_layers=num_layers) == ["verified"] * 4

    def test_is_timed_like_any_other(self):
        chosen = {"slots": "prefill", "padding": 0.3, "padding_at": "scattered", "rows": "qkv"}
        points = measured(**QUICK, **chosen, num_layers=3, extra_tokens=4, num_tokens=(3, 16))
        assert [point.status for point in points] == ["ok", "ok"]
        assert all(point.copy_us > 0 for point in points)
        # 2 and 11 tokens have a slot: rows read and written once, and every slot read.
        assert [point.bytes_moved for point in points] == [2 * 2 * 256 + 3 * 8, 11 * 2 * 256 + 16 * 8]


class TestAnErrorOfAPoint:
    def test_is_its_reason_and_the_next_point_goes_on(self):
        points = measured(how="wrong_impls.Raising")
        assert [point.status for point in points] == ["failed", "verified", "verified", "verified"]
        source = Path(wrong_impls.__file__).read_text("utf-8").splitlines()
        (line,) = (number for number, text in enumerate(source, 1) if "raise self.error(self.words)" in text)
        said = "ZeroDivisionError: no head is left to divide by"
        assert points[0].reason == f"{said} at wrong_impls.py:{line}, in call"
        assert points[0].traceback.startswith("Traceback (most recent call last):\n")
        assert points[0].traceback.endswith(f"{said}\n")
        assert f'wrong_impls.py", line {line}, in call' in points[0].traceback
        assert points[1].traceback == ""

    def test_a_refusal_after_the_rows_were_written_leaves_a_clean_cache(self):
        points = measured(how="wrong_impls.Refusing")
        assert [point.status for point in points] == ["skipped", "verified", "verified", "verified"]
        assert points[0].reason == "impl=refusing found out too late"

    def test_an_error_of_the_curve_is_every_point_s(self):
        made = tiny_curve.curve()
        broken = replace(made, impl=replace(made.impl, target="tests.helpers.wrong_impls.Deadly"))
        points = list(run_curve.run(broken, ENVIRONMENT))
        assert [point.status for point in points] == ["failed"] * 4
        assert points[0].reason.startswith("TypeError: ")

    @pytest.mark.parametrize(
        ("target", "options", "sentence"),
        [
            ("kvexp.impl.torch.Torch", {"threads": 3}, "torch takes no option 'threads'"),
            (
                "kvexp.impl.torch.Missing",
                {},
                "kvexp.impl.torch.Missing of torch cannot be found: "
                f"{kvexp.impl.torch.__file__} has no Missing",
            ),
            (
                "kvexp.nowhere.Torch",
                {},
                "kvexp.nowhere.Torch of torch cannot be found: kvexp.nowhere is no module in "
                f"{Path(kvexp.__file__).parent}",
            ),
            ("", {}, "the YAML of torch names no class under _target_"),
        ],
    )
    def test_what_is_wrong_on_every_machine_is_no_row(self, target, options, sentence):
        made = tiny_curve.curve()
        broken = replace(made, impl=replace(made.impl, target=target, options=options))
        with pytest.raises(ConfigError) as raised:
            list(run_curve.run(broken, ENVIRONMENT))
        assert str(raised.value) == sentence

    def test_a_module_that_is_not_there_names_where_it_was_looked_for(self, monkeypatch, tmp_path):
        monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
        made = tiny_curve.curve()
        broken = replace(made, impl=replace(made.impl, target="my_kernels.Mine"))
        where = f"my_kernels is no module in {Path.cwd()}, {tmp_path}"
        with pytest.raises(ConfigError, match=re.escape(where)) as raised:
            list(run_curve.run(broken, ENVIRONMENT))
        assert "the installed packages; PYTHONPATH=FOLDER adds a folder" in str(raised.value)


class TestATimedPoint:
    def test_says_where_its_time_went(self):
        begin = time.perf_counter()
        points = list(measured(**QUICK))
        whole = time.perf_counter() - begin
        for point in points:
            assert sorted(point.seconds) == sorted(SECONDS)
            assert min(point.seconds.values()) > 0
            # A sample is one replay of all calls.
            calls = point.replicas * sum(point.samples_us) / 1e6
            assert point.seconds["timing_s"] >= 0.9 * calls
        own = sum(
            seconds for point in points for part, seconds in point.seconds.items() if part != "curve_setup_s"
        )
        assert own + points[0].seconds["curve_setup_s"] < whole

    def test_has_a_latency_of_all_its_samples_and_no_reason(self):
        for point in measured(**QUICK):
            assert (point.status, point.reason) == ("ok", "")
            assert point.statistics == summarise(point.samples_us)
            assert 3 <= len(point.samples_us) <= 5
            assert point.statistics.latency_us > 0
            assert point.copy_us > 0
            assert point.case.timer == "wall_clock"
            assert (point.host_us, point.empty_kernel_us, point.cache_state) == (None, None, None)

    def test_declares_the_bytes_that_must_move(self):
        points = measured(**QUICK, dtype="half", kv_cache_dtype="fp8")
        items = [n * 2 * 2 * 32 for n in (1, 3, 16, 50)]
        slots = [8 * n for n in (1, 3, 16, 50)]
        assert [point.bytes_moved for point in points] == [
            3 * i + s for i, s in zip(items, slots, strict=True)
        ]

    def test_a_row_s_columns_are_those_of_a_skipped_one(self):
        timed = measured(**QUICK)[0].row()
        skipped = measured(impl="cuda", **QUICK)[0].row()
        assert list(timed) == list(skipped)
        assert timed["device_name"] == "a CPU"

    def test_two_points_of_a_curve_do_not_disturb_each_other(self):
        points = measured(**QUICK, num_tokens=(50, 3, 1, 49), kv_cache_dtype="fp8")
        assert [point.status for point in points] == ["ok"] * 4

    def test_no_cuda_event_is_recorded_on_a_cpu(self, monkeypatch):
        def refused(*_):
            raise AssertionError("CUDA events were recorded on a CPU")

        monkeypatch.setattr(CudaEvent, "make_replay", refused)
        points = measured(timer="auto", rule=RULE)
        assert [(point.status, point.case.timer, point.case.mode) for point in points] == [
            ("ok", "wall_clock", "no_graph")
        ] * 4

    def test_says_when_it_was_begun_with_the_offset(self):
        begun = [point.started_at for point in measured(how="wrong_impls.Raising")]
        assert begun == sorted(begun)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", at) for at in begun)

    def test_a_point_is_known_before_the_next_is_begun(self):
        points = run_curve.run(tiny_curve.curve(), ENVIRONMENT)
        assert next(points).case.num_tokens == 1
        points.close()


class TestWhatCannotBeDoneHere:
    def test_more_tokens_than_slots_skip_that_point_alone(self):
        points = measured(num_tokens=(1, 128, 129))
        assert [point.status for point in points] == ["verified", "verified", "skipped"]
        assert points[2].reason == "num_tokens 129 exceeds the 128 slots of the cache (8 blocks of 16)"

    def test_a_curve_of_too_many_tokens_allocates_nothing(self, monkeypatch):
        monkeypatch.setattr(device_memory, "free_bytes", lambda device: 0)
        points = measured(num_tokens=(129, 130))
        assert [point.reason.partition(" of")[0] for point in points] == [
            "num_tokens 129 exceeds the 128 slots"
        ] * 2

    @pytest.mark.parametrize("head_sizes", [(1, 1), (7, 7), (46, 46), (46, 33)], ids=str)
    @pytest.mark.parametrize("scale", ["per_tensor", "per_head"])
    def test_fp8_heads_of_any_size_are_verified(self, scale, head_sizes):
        head_size, head_size_v = head_sizes
        op = "reshape_and_cache_flash" if head_size == head_size_v else "reshape_and_cache_flash_diffkv"
        points = measured(
            op=op, layout="NHD_packed", kv_cache_dtype="fp8", scale=scale, head_size=head_size,
            head_size_v=head_size_v, num_heads=3, num_tokens=(1, 5, 16), num_layers=3,
        )  # fmt: skip
        assert [point.status for point in points] == ["verified"] * 3

    @pytest.mark.parametrize(
        ("chosen", "reason"),
        [
            ({"mode": "cudagraph"}, "mode=cudagraph needs a GPU; on device=cpu use mode=no_graph"),
            ({"timer": "cuda_event"}, "timer=cuda_event needs a GPU; on device=cpu use timer=wall_clock"),
        ],
    )
    def test_what_only_a_gpu_has_is_skipped_on_a_cpu(self, chosen, reason):
        assert {(point.status, point.reason) for point in measured(**chosen)} == {("skipped", reason)}

    @pytest.mark.parametrize(("op", "layout"), compose.pairs())
    def test_the_number_that_would_fit_fits_and_one_more_does_not(self, monkeypatch, op, layout):
        monkeypatch.setattr(
            device_memory, "free_bytes", lambda device: device_memory.WORKING_BYTES + (1 << 20)
        )
        for kv_cache_dtype, num_layers in product(compose.formats(), (1, 3)):
            asked = {"op": op, "layout": layout, "kv_cache_dtype": kv_cache_dtype, "num_layers": num_layers}
            refused = measured(**asked, num_tokens=(1, 7), num_blocks=100000)
            fits = int(re.search(r"workload\.num_blocks=(\d+) would fit", refused[0].reason)[1])
            assert outcomes(**asked, num_tokens=(1, 7), num_blocks=fits) == ["verified"] * 2
            assert outcomes(**asked, num_tokens=(1, 7), num_blocks=fits + 1) == ["skipped"] * 2


def test_every_row_is_strict_json():
    wrong = [*measured(how="wrong_impls.Idle"), *measured(how="wrong_impls.Raising")]
    for point in (*measured(**QUICK), *measured(impl="cuda"), *wrong):
        assert json.loads(json.dumps(point.row(), allow_nan=False)) == point.row()


@pytest.mark.parametrize("chosen", [{"cache": "cold"}, {"inputs": "cold"}, {"cache": "hot"}])
def test_a_state_of_the_l2_is_a_gpu_s(chosen):
    state = {"cache": "auto", "inputs": "hot", **chosen}
    for point in measured(timer="wall_clock", rule=chosen):
        assert point.status == "skipped"
        assert point.reason == (
            f"timer.cache={state['cache']} timer.inputs={state['inputs']} needs a GPU and timer=cuda_event "
            "or cupti; elsewhere they are auto and hot"
        )
