"""The options of conf/timer: what each needs, says and times."""

import pytest

from kvexp.errors import Unsupported
from kvexp.impl import make
from kvexp.timer import Timer
from kvexp.timer.replay_plan import ONCE
from tests.helpers import compose

TIMERS = [name for name in compose.options("timer") if name != "auto"]
GPU_S = ["cuda_event", "cupti", "profile"]


def made(name, device="cuda:0", mode="cudagraph", **options):
    choice = compose.choice("timer", name)
    return make(choice, device=device, mode=mode, **options)


@pytest.mark.parametrize("name", TIMERS)
def test_an_option_names_a_timer_of_its_own_name(name):
    timer = made(name)
    assert isinstance(timer, Timer)
    assert (timer.name, timer.device, timer.mode) == (name, "cuda:0", "cudagraph")
    assert (timer.criterion.min_samples, timer.cache, timer.inputs) == (20, "auto", "hot")


@pytest.mark.parametrize("device", ["cpu", "cuda:3"])
def test_auto_is_the_timer_that_the_row_names(device):
    resolved = compose.experiment("timer=auto").resolve(device)
    assert make(resolved.timer, device=device, mode=resolved.mode.name).name == resolved.timer.name


@pytest.mark.parametrize("name", TIMERS)
def test_a_cpu_has_the_host_s_clock_and_what_reads_none(name):
    timer = made(name, "cpu", "no_graph")
    if name not in GPU_S:
        timer.check()
        return
    with pytest.raises(Unsupported) as raised:
        timer.check()
    assert str(raised.value) == f"timer={name} needs a GPU; on device=cpu use timer=wall_clock"


@pytest.mark.parametrize("name", [name for name in TIMERS if name != "cupti"])
def test_a_gpu_has_all_that_need_no_package(name):
    made(name, "cuda:3").check()


def test_some_read_no_clock_and_say_so():
    untimed = {name: made(name).untimed for name in TIMERS if made(name).untimed}
    assert untimed == {
        "none": "timer=none: not timed",
        "profile": "timer=profile: run for a profiler, not timed",
    }


def test_a_gpu_s_clock_tells_gpu_time_alone():
    assert [name for name in TIMERS if made(name).has_gpu_clock] == ["cuda_event", "cupti"]


@pytest.mark.parametrize("name", TIMERS)
def test_host_load_affects_what_the_host_s_clock_or_its_launches_take(name):
    assert made(name, "cpu", "no_graph").is_host_sensitive
    assert made(name, "cuda:0", "no_graph").is_host_sensitive
    assert made(name, "cuda:0", "cudagraph").is_host_sensitive == (name == "wall_clock")


def test_the_host_s_clock_times_one_call_of_a_gpu():
    plan = made("wall_clock").plan(64, 8192, 8192, 10_000)
    assert (plan.all_calls, plan.mappings, plan.flush_l2) == (1, 1, False)
    assert (plan.cache_state, plan.inputs_state) == ("hot", "hot")
    assert ONCE.cache_state is None
