import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvexp.bench import environment, run_curve
from kvexp.bench.run_point import STALE
from kvexp.experiment import Choice
from kvexp.impl.cuda import launcher
from kvexp.measurement import ENVIRONMENT
from kvexp.timer.replay_plan import COLD_FACTOR
from tests.gpu.test_bytes_on_gpu import PATTERNS
from tests.helpers import compose
from tests.helpers.stale_impls import READS

pytestmark = pytest.mark.alone

TOKENS = "workload.num_tokens=[1,64,1024]"


def experiment(*overrides, workload="quickstart", tokens=TOKENS, seconds=0.05):
    """A curve whose points are sampled for so long; 20 samples are taken in any case."""
    return compose.experiment(f"workload={workload}", tokens, f"timer.max_seconds={seconds}", *overrides)


def measured(*overrides, how="", options=None, **sizes):
    """The points of a curve; written by the class `how` of tests.helpers, if one is given."""
    made = experiment(*overrides, **sizes)
    if how:
        made = replace(made, impl=Choice(how.rpartition(".")[2], f"tests.helpers.{how}", options or {}))
    return list(run_curve.run(made.resolve("cuda:0"), environment.read("cuda:0")))


@pytest.mark.parametrize("mode", ["cudagraph", "no_graph"])
@pytest.mark.parametrize("op", compose.cache_writes())
@pytest.mark.parametrize("impl", compose.implementations())
def test_every_point_is_right_and_timed_on_the_gpu_s_clock(impl, op, mode):
    """In the op's own layout; test_bytes_on_gpu.py has the others."""
    for point in measured(f"impl={impl}", f"op={op}", f"mode={mode}"):
        assert point.status == "ok", point.reason
        assert point.case.timer == "cuda_event"
        assert point.cache_state == "cold"
        assert point.statistics.samples >= 20
        assert len(point.samples_us) == point.statistics.samples
        assert (point.host_us is not None) == (mode == "no_graph")
        # A kernel cannot beat a copy of its own bytes by more than the copy's own noise.
        assert 0 < point.copy_fraction < 1.25, point
        assert point.empty_kernel_us < point.statistics.latency_us


@pytest.mark.parametrize("op", sorted({*compose.all_cache_writes()} - {*compose.cache_writes()}))
@pytest.mark.parametrize("impl", ["cuda", "triton"])
def test_formats_of_an_op_s_own_are_timed_beside_their_copy(impl, op):
    sizes = (f"workload.{key}={value}" for key, value in compose.sizes(op).items())
    for point in measured(f"impl={impl}", f"op={op}", f"kv_cache_dtype={compose.op_formats(op)[-1]}", *sizes):
        assert point.status == "ok", point.reason
        assert 0 < point.copy_fraction < 1.25, point


@pytest.mark.parametrize("op", compose.cache_writes())
@pytest.mark.parametrize(
    "chosen", ["kv_cache_dtype=fp8 scale=per_head", "kv_cache_dtype=fp8_e5m2 dtype=fp8_e5m2"]
)
@pytest.mark.parametrize("impl", ["cuda", "triton"])
def test_fp8_is_measured_too(impl, chosen, op):
    """Of torch test_bytes_on_gpu.py asks for the bytes; to time its many kernels takes long."""
    for point in measured(f"impl={impl}", f"op={op}", *chosen.split()):
        assert point.status == "ok", point.reason


@pytest.mark.parametrize("chosen", PATTERNS)
def test_every_pattern_is_timed(chosen):
    for point in measured("impl=cuda", *chosen.split()):
        assert point.status == "ok", point.reason


def test_padding_tokens_cost_little():
    """Half of the tokens without a slot: the kernel does not move their rows."""
    sizes = {"workload": "llama3_8b", "tokens": "workload.num_tokens=32768", "seconds": 0.3}
    full = measured("impl=cuda", **sizes)[0].statistics.latency_us
    half = measured("impl=cuda", "workload.padding=0.5", **sizes)[0].statistics.latency_us
    assert half < 0.8 * full


def test_the_default_cache_of_the_quickstart_is_larger_than_the_l2():
    w = experiment().workload
    cache = w.num_blocks * w.block_size * w.num_heads * w.head_size * 2 * 2
    assert cache > COLD_FACTOR * torch.cuda.get_device_properties(0).L2_cache_size


def test_wall_clock_reads_more_than_the_gpu_s_own_time():
    """What the host sees of a small kernel is mostly the launch and the synchronisation."""
    gpu = measured("impl=cuda", tokens="workload.num_tokens=1")[0].statistics.latency_us
    host = measured("impl=cuda", "timer=wall_clock", tokens="workload.num_tokens=1")[0].statistics.latency_us
    assert host > 2 * gpu


def test_a_cache_beyond_the_memory_is_skipped_with_what_would_fit():
    point = measured("impl=cuda", "workload.num_blocks=100000000")[0]
    assert point.status == "skipped"
    assert "workload.num_blocks=" in point.reason


def test_a_broken_source_is_failed_with_the_compiler_s_words(tmp_path, monkeypatch):
    broken = Path(shutil.copytree(launcher.SOURCES, tmp_path / "broken")) / "reshape_and_cache_flash.cu"
    line = "const index_t first = flat_index<UNROLL>()"
    source = broken.read_text()
    assert f"{line};" in source
    broken.write_text(source.replace(f"{line};", line))
    monkeypatch.setattr(launcher, "SOURCES", broken.parent)
    point = measured("impl=cuda")[0]
    assert point.status == "failed"
    assert "reshape_and_cache_flash.cu(" in point.reason
    assert 'expected a ";"' in point.reason


def test_the_copy_reaches_most_of_the_memory_s_speed():
    """The equal copy is fast: on a Hopper at least 85 % of what its memory is sold for."""
    sizes = {"workload": "llama3_8b", "tokens": "workload.num_tokens=32768", "seconds": 0.3}
    point = measured("impl=cuda", **sizes)[0]
    sold = {"NVIDIA H200": 4800, "NVIDIA H100 80GB HBM3": 3350}.get(torch.cuda.get_device_name())
    if sold is not None:
        assert point.bytes_moved / point.copy_us / 1e3 > 0.85 * sold


def test_the_environment_names_the_gpu():
    columns = environment.read("cuda:0")
    assert list(columns) == list(ENVIRONMENT)
    assert columns["device_name"] == torch.cuda.get_device_name()
    assert columns["device_uuid"].startswith("GPU-")
    assert columns["driver"].count(".") >= 1


@pytest.mark.parametrize("scale", ["per_tensor", "per_head"])
@pytest.mark.parametrize("head_size", [7, 46])
@pytest.mark.parametrize("impl", ["cuda", "triton"])
def test_fp8_heads_of_any_size_are_verified_and_timed(impl, head_size, scale):
    sizes = ("workload.num_heads=3", f"workload.head_size={head_size}")
    for point in measured(f"impl={impl}", "kv_cache_dtype=fp8", f"scale={scale}", *sizes):
        assert point.status == "ok", point.reason


@pytest.mark.parametrize("tokens", [1, 3, 4, 64])
def test_a_copy_reads_no_more_than_there_is(tokens):
    """Rows so small that the slots weigh as much: the equal copy counts each once, or there is none."""
    (point,) = measured(
        "impl=cuda", "workload.num_heads=1", "workload.head_size=1", tokens=f"workload.num_tokens={tokens}"
    )
    assert point.status == "ok", point.reason
    assert (point.copy_us is None) == (tokens * 2 * 2 < 16)


def test_a_call_that_is_right_once_is_not_timed():
    for point in measured("mode=no_graph", how="wrong_impls.Lazy", tokens="workload.num_tokens=[1,64]"):
        assert point.status == "incorrect"
        assert point.statistics is None


@pytest.mark.parametrize("mode", ["cudagraph", "no_graph"])
@pytest.mark.parametrize("what", READS)
def test_a_call_that_keeps_what_it_read_when_it_was_bound_is_incorrect(what, mode):
    kv_cache_dtype = "fp8" if what in ("scales", "everything") else "auto"
    chosen = (f"mode={mode}", f"kv_cache_dtype={kv_cache_dtype}")
    how = {"how": "stale_impls.Stale", "options": {"what": what}}
    for point in measured(*chosen, **how, tokens="workload.num_tokens=[1,64]"):
        assert (point.status, point.statistics) == ("incorrect", None)
        assert point.reason.startswith(f"{STALE}: ")


@pytest.mark.parametrize("first", [1, 4, 10])
def test_a_call_that_skips_work_while_it_is_timed_is_incorrect(first):
    """Where it finds poison it writes, so that the last check would not tell."""
    how = {"how": "stale_impls.Resting", "options": {"first": first}}
    for point in measured("mode=no_graph", "timer=wall_clock", **how, tokens="workload.num_tokens=64"):
        assert (point.status, point.statistics) == ("incorrect", None)
        assert point.reason.startswith("right at first, but not while it was timed: ")


def test_a_call_on_another_stream_has_no_latency():
    for point in measured("mode=no_graph", how="wrong_impls.Elsewhere"):
        # What is looked at before it has run is incorrect.
        assert point.status in ("failed", "incorrect"), point
        assert point.statistics is None


def test_the_gpu_is_watched_while_it_measures():
    for point in measured("impl=cuda"):
        row = point.row()
        assert row["sm_clock_mhz"] > 100
        assert row["memory_clock_mhz"] > 100
        assert 0 < row["temperature_c"] < 120
        assert row["power_w"] > 10
        assert isinstance(row["throttled"], str)


@pytest.mark.parametrize("mode", ["cudagraph", "no_graph"])
@pytest.mark.parametrize("impl", ["cuda", "triton"])
def test_every_state_of_the_l2_is_right_and_said(impl, mode):
    for cache in ("cold", "hot"):
        for inputs in ("cold", "hot"):
            chosen = (f"timer.cache={cache}", f"timer.inputs={inputs}")
            for point in measured(f"impl={impl}", f"mode={mode}", *chosen):
                assert point.status == "ok", point.reason
                assert (point.cache_state, point.inputs_state) == (cache, inputs)


def test_cold_slots_and_cold_inputs_each_cost_time():
    """1024 tokens x 8 heads: 4 MB read and 4 MB written, which stay in any L2 when they may."""
    took = {
        (cache, inputs): measured(
            "impl=cuda",
            f"timer.cache={cache}",
            f"timer.inputs={inputs}",
            tokens="workload.num_tokens=1024",
            seconds=0.3,
        )[0].statistics.latency_us
        for cache in ("cold", "hot")
        for inputs in ("cold", "hot")
    }
    assert took["cold", "cold"] > 1.05 * took["hot", "hot"]
    assert took["hot", "cold"] > 1.02 * took["hot", "hot"]


def test_cold_slots_that_cannot_be_are_refused():
    for point in measured("impl=cuda", "timer.cache=cold", workload="tiny", tokens="workload.num_tokens=50"):
        assert point.status == "skipped"
        assert "timer.cache=cold needs slots for 4 calls" in point.reason


@pytest.mark.parametrize("impl", compose.implementations())
def test_what_a_profiler_is_shown_is_right_and_not_timed(impl, monkeypatch):
    shown = []
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: shown.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: shown.append("stop"))
    points = measured(f"impl={impl}", "timer=profile")
    for point in points:
        assert (point.status, point.reason) == ("verified", "timer=profile: run for a profiler, not timed")
    assert shown == ["start", "stop"] * len(points)
