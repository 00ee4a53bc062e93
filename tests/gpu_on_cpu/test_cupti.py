"""timer=cupti against a stand-in with the names and arguments of cupti-python."""

import enum
import sys
from dataclasses import replace
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest

from kvexp.bench.mode import prepare
from kvexp.errors import KvexpError, Unsupported
from kvexp.gpu import cupti as activity
from kvexp.timer import cupti as timer_cupti
from kvexp.timer import time_replay
from kvexp.timer.cuda_event import CudaEvent
from kvexp.timer.replay_plan import ONCE


class cuptiError(Exception):  # its name there
    pass


class ActivityKind(enum.IntEnum):
    MEMCPY = 1
    MEMSET = 2
    CONCURRENT_KERNEL = 10
    MEMCPY2 = 22


class Cupti(ModuleType):
    """Keeps what runs while its kind is enabled, and hands it over when it is flushed by force."""

    cuptiError = cuptiError
    ActivityKind = ActivityKind

    def __init__(self, refuses=""):
        super().__init__("cupti.cupti")
        self.refuses = refuses
        self.enabled = set()
        self.buffer = []
        self.now = 10**9

    def activity_register_callbacks(self, func_buffer_requested, func_buffer_completed):
        size, most = func_buffer_requested()
        assert size >= 1 << 20
        assert most == 0
        self.completed = func_buffer_completed

    def activity_enable(self, kind):
        if self.refuses:
            raise cuptiError(self.refuses)
        self.enabled.add(kind)

    def activity_disable(self, kind):
        self.enabled.remove(kind)

    def activity_flush_all(self, flag):
        assert flag == 1
        records, self.buffer = self.buffer, []
        if records:
            self.completed(records)

    def run(self, ns, kind=ActivityKind.CONCURRENT_KERNEL):
        """Something runs on the GPU that is played, after a pause."""
        begin = self.now + 700
        self.now = begin + ns
        if kind in self.enabled:
            self.buffer.append(SimpleNamespace(kind=int(kind), start=begin, end=self.now))


@pytest.fixture
def installed(monkeypatch):
    """Puts a stand-in where cupti-python would be."""

    def put(cupti):
        package = ModuleType("cupti")
        package.cupti = cupti
        monkeypatch.setitem(sys.modules, "cupti", package)
        return cupti

    activity.load_cupti.cache_clear()
    yield put
    activity.load_cupti.cache_clear()


@pytest.fixture
def missing(monkeypatch):
    activity.load_cupti.cache_clear()
    monkeypatch.setitem(sys.modules, "cupti", None)


@pytest.fixture
def timed(monkeypatch):
    """Gives the samples of a replay of that many calls, on a GPU that is played."""
    played = SimpleNamespace(cuda=SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(timer_cupti, "torch", played)

    def measure(call, calls=4, flush_l2=None):
        timer = timer_cupti.Cupti("cuda:0", "no_graph", warmup=1, min_samples=5, max_samples=5)
        plan = replace(ONCE, calls=calls)
        with timer.open():
            replay = timer.make_replay(partial(prepare, timer.mode), [[call] * calls], plan, flush_l2)
            return time_replay(replay, timer.criterion).samples_us

    return measure


class TestALatency:
    def test_is_what_the_kernels_of_a_call_took(self, installed, timed):
        cupti = installed(Cupti())

        def call():
            cupti.run(1500)
            cupti.run(250, ActivityKind.MEMCPY)
            cupti.run(50, ActivityKind.MEMSET)

        assert timed(call) == pytest.approx([1.8] * 5)

    def test_is_a_mean_over_the_calls_of_a_replay(self, installed, timed):
        cupti = installed(Cupti())
        lengths = iter(range(1000, 100_000, 100))
        assert timed(lambda: cupti.run(next(lengths)), calls=2) == pytest.approx(
            [1.25, 1.45, 1.65, 1.85, 2.05]
        )

    def test_leaves_out_the_l2_flush_before_it(self, installed, timed):
        cupti = installed(Cupti())
        assert timed(lambda: cupti.run(1000), flush_l2=lambda: cupti.run(90_000)) == pytest.approx([1.0] * 5)

    def test_of_lost_records_is_none(self, installed, timed):
        cupti = installed(Cupti())
        kinds = iter([ActivityKind.CONCURRENT_KERNEL, ActivityKind.MEMCPY, None, None] * 10)
        with pytest.raises(KvexpError, match="CUPTI has recorded 2 kernels of 4 equal calls"):
            timed(lambda: cupti.run(1000, next(kinds)))

    def test_of_a_call_that_runs_nothing_is_none(self, installed, timed):
        installed(Cupti())
        with pytest.raises(KvexpError, match="recorded 0 kernels"):
            timed(lambda: None)

    def test_of_records_without_times_is_none(self, installed, timed):
        cupti = installed(Cupti())
        with pytest.raises(KvexpError, match="without their durations"):
            timed(lambda: cupti.run(0))


def test_nothing_is_recorded_afterwards(installed):
    cupti = installed(Cupti())
    with activity.record():
        assert {kind.name for kind in cupti.enabled} == set(activity.KINDS)
    assert not cupti.enabled


def test_a_profiler_that_is_at_work_is_a_refusal(installed):
    installed(Cupti(refuses="CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED"))
    with pytest.raises(Unsupported, match="CUPTI refuses: CUPTI_ERROR_MULTIPLE"), activity.record():
        pass


def test_without_the_package_it_is_refused_with_the_fix(missing):
    with pytest.raises(
        Unsupported, match=r"needs the package cupti-python, .*; pip install 'kvexp\[cupti\]'"
    ):
        timer_cupti.Cupti("cuda:0", "cudagraph").check()


def test_a_cpu_is_refused(installed):
    installed(Cupti())
    timer_cupti.Cupti("cuda:0", "cudagraph").check()
    with pytest.raises(Unsupported, match="timer=cupti needs a GPU"):
        timer_cupti.Cupti("cpu", "no_graph").check()


@pytest.mark.parametrize("mode", ["cudagraph", "no_graph"])
def test_its_calls_find_the_l2_as_those_of_cuda_events_do(mode):
    one, other = (
        timer("cuda:0", mode, cache="cold", inputs="cold").plan(64, 8192, 8192, 10_000)
        for timer in (CudaEvent, timer_cupti.Cupti)
    )
    assert other == one.without_short_calls()
    assert other.short_calls == 0
    assert (other.windows, other.inputs_state) == (one.windows, one.inputs_state)
    assert (other.cache_state, other.inputs_state, other.flush_l2) == ("cold", "cold", True)
