"""Lines that a kernel lets persist in the L2 would outlast the flush: no sample begins with one."""

import functools
from dataclasses import replace

import pytest
import torch
from cuda.bindings import driver

from kvexp import timer
from kvexp.bench import curve_setup, environment, mode, run_curve, run_point
from kvexp.gpu import persisting_l2
from kvexp.impl.cuda import Cuda
from kvexp.statistics import summarise
from kvexp.timer.cuda_event import CudaEvent
from kvexp.timer.replay_plan import Plan
from kvexp.timer.stopping_criterion import StoppingCriterion
from tests.helpers import compose

pytestmark = pytest.mark.alone

BYTES = 32 << 20
GPU = torch.device("cuda:0")


def set_aside():
    """Set as much of the L2 aside as the GPU allows; return the bytes."""
    properties = torch.cuda.get_device_properties(0)
    most = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_PERSISTING_L2_CACHE_SIZE
    error, found = driver.cuDeviceGetAttribute(most, 0)
    assert not error
    if not found:
        pytest.skip(f"{properties.name} sets no L2 aside")  # before compute capability 8.0, and with MIG
    limit = driver.CUlimit.CU_LIMIT_PERSISTING_L2_CACHE_SIZE
    assert driver.cuCtxSetLimit(limit, found) == (driver.CUresult.CUDA_SUCCESS,)
    return driver.cuCtxGetLimit(limit)[1]


def let_persist(memory):
    """Give the current stream an access-policy window over the memory, whose lines are to persist."""
    value = driver.CUstreamAttrValue()
    window = value.accessPolicyWindow
    window.base_ptr, window.num_bytes, window.hitRatio = memory.data_ptr(), memory.nbytes, 1.0
    window.hitProp = driver.CUaccessProperty.CU_ACCESS_PROPERTY_PERSISTING
    window.missProp = driver.CUaccessProperty.CU_ACCESS_PROPERTY_STREAMING
    value.accessPolicyWindow = window
    stream = torch.cuda.current_stream().cuda_stream
    attribute = driver.CUstreamAttrID.CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW
    assert driver.cuStreamSetAttribute(stream, attribute, value) == (driver.CUresult.CUDA_SUCCESS,)


def median_us(replay):
    """The median of some samples."""
    return summarise(timer.time_replay(replay, StoppingCriterion(max_samples=60)).samples_us).latency_us


@pytest.mark.parametrize("how", ["cudagraph", "no_graph"])
def test_a_line_that_was_to_persist_is_flushed_like_any_other(how):
    """Time a read of 32 MB after a flush; the control finds them in the L2 nevertheless."""
    watched, other = torch.zeros((2, BYTES // 8), dtype=torch.int64, device="cuda")
    total = torch.empty((), dtype=torch.int64, device="cuda")
    flush = curve_setup.make_flush(torch.cuda.get_device_properties(0).L2_cache_size, "cuda:0")
    calls = [functools.partial(torch.sum, memory, dim=0, out=total) for memory in (other, watched, other)]
    # The series differ by the read that is watched.
    plan = Plan(2, 1, mappings=1, cache_state="cold", flush_l2=True)
    prepare = functools.partial(mode.prepare, how)

    def make_replay():
        return CudaEvent("cuda:0", how).make_replay(prepare, [calls], plan, flush)

    with torch.cuda.stream(torch.cuda.Stream()):
        for call in calls:
            call()
        found = set_aside()
        let_persist(watched)
        replay = make_replay()
        kept = median_us(replay)
        assert persisting_l2.end_set_aside(GPU) == found
        flushed = median_us(replay)
        assert persisting_l2.end_set_aside(GPU) == 0
    with torch.cuda.stream(torch.cuda.Stream()):
        plain = median_us(make_replay())
    assert kept < 0.98 * flushed
    assert flushed == pytest.approx(plain, rel=0.05)


class AtBinding(Cuda):
    """Sets L2 aside when a call is bound."""

    def reshape_and_cache_flash(self, *arguments):
        set_aside()
        return super().reshape_and_cache_flash(*arguments)


class WhenMade(Cuda):
    """Sets L2 aside when it is made."""

    def __init__(self, **options):
        super().__init__(**options)
        set_aside()


class AtEachCall(Cuda):
    """Sets L2 aside each time it runs."""

    def reshape_and_cache_flash(self, *arguments):
        bound = super().reshape_and_cache_flash(*arguments)

        def call():
            set_aside()
            bound()

        return call


def measure(impl, how, *words):
    """The one point of a curve of the class."""
    made = compose.experiment(
        "impl=cuda", f"mode={how}", *words, "workload=quickstart", "workload.num_tokens=[64]"
    )
    target = f"{__name__}.{impl.__name__}"
    made = replace(made, impl=replace(made.impl, name=impl.__name__.lower(), target=target))
    (point,) = run_curve.run(made.resolve("cuda:0"), environment.read("cuda:0"))
    return point


@pytest.mark.parametrize("how", ["cudagraph", "no_graph"])
def test_a_row_says_what_was_set_aside_and_is_timed_without(how):
    """Set L2 aside as a driver or an earlier curve does: that is no implementation's."""
    found = set_aside()
    for impl, its_own in ((Cuda, 0), (AtBinding, found), (WhenMade, found), (Cuda, 0)):
        point = measure(impl, how)
        assert (point.status, point.l2_persisting_bytes) == ("ok", its_own), (impl, point.reason)
        assert persisting_l2.end_set_aside(GPU) == 0


def test_a_call_that_sets_aside_each_time_is_not_timed():
    """CUDA events cannot queue such a call, since the driver waits for the GPU; any other clock could."""
    point = measure(AtEachCall, "no_graph", "timer=wall_clock")
    assert (point.status, point.reason) == ("skipped", run_point.SETS_ASIDE)
