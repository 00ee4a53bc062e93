"""The replay of a point's calls; and the choice of the fastest unroll for the equal copy."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvexp.bench import curve_setup, equal_copy
from kvexp.bench.curve_setup import Curve, prepare_copy
from kvexp.timer import cuda_event
from kvexp.timer.cuda_event import CudaEvent
from kvexp.timer.replay_plan import Plan
from kvexp.timer.stopping_criterion import StoppingCriterion
from kvexp.timer.wall_clock import WallClock
from tests.helpers import tiny_curve

L2 = 60 << 20
LARGE = 3 * L2
PLAN = Plan(calls=4, short_calls=1, mappings=4, cache_state="cold", flush_l2=True, inputs_state="hot")
WARM = Plan(calls=4, short_calls=1, mappings=1, cache_state="warm", flush_l2=False, inputs_state="hot")
CASE = SimpleNamespace(device="cuda:0", mode="cudagraph", timer="cuda_event")


@pytest.fixture
def measured(monkeypatch):
    """Each shape of a size that was measured so far; two vectors a thread are the fastest, then one."""
    seen = []
    latency_us = {1: 2.0, 2: 1.5, 4: 3.0}

    def prepare_copies(of, case, plan, read, written, unrolls):
        return iter([(None, (written, unroll)) for unroll in unrolls])

    def measure_median(replay, criterion):
        seen.append((*replay, criterion.max_samples))
        assert criterion.warmup == curve_setup.COPY_WARMUP < StoppingCriterion().warmup
        return latency_us[replay[1]]

    monkeypatch.setattr(
        equal_copy, "list_unrolls", lambda memory, written: (1, 2, 4) if written > L2 // 8 else (1,)
    )
    monkeypatch.setattr(curve_setup, "prepare_copies", prepare_copies)
    monkeypatch.setattr(curve_setup, "measure_median", measure_median)
    return seen


@pytest.fixture
def gpu_s():
    nothing = dict.fromkeys(["layout", "memory", "flush_l2", "empty_kernel_us", "machine"])
    op = SimpleNamespace(count_indices=lambda case: case.num_tokens)
    impl, timer = SimpleNamespace(untimed=""), CudaEvent("cuda:0", "no_graph")
    return Curve(**nothing, op=op, impl=impl, timer=timer, item_bytes=2, l2_bytes=L2)


@pytest.mark.parametrize(("short_calls", "clock"), [(3, CudaEvent), (0, WallClock)])
def test_each_run_of_a_replay_makes_the_calls_of_both_series(monkeypatch, gpu_s, short_calls, clock):
    made = []
    event = SimpleNamespace(record=lambda: None)
    monkeypatch.setattr(cuda_event.torch.cuda, "Event", lambda **_: event)
    calls = [lambda number=number: made.append(number) for number in range(16)]
    plan = Plan(5, short_calls, 6, "cold", True)
    swept = replace(gpu_s, flush_l2=lambda: made.append("sweep"), timer=clock("cuda:0", "no_graph"))
    turns = [calls[: 5 + short_calls], calls[8 : 13 + short_calls]]
    case = replace(tiny_curve.case(), mode="no_graph", timer=clock.name)
    replay = curve_setup.make_replay(swept, case, turns, plan)
    for run, first in zip(replay.runs, (0, 8), strict=True):
        made.clear()
        run()
        long, short = [first + i for i in range(5)], [first + 5 + i for i in range(short_calls)]
        assert made == (["sweep", *long, "sweep", *short] if short_calls else long)
    assert replay.calls == 5 + short_calls


def test_a_few_samples_of_each_shape_choose_the_one_that_is_measured(measured, gpu_s):
    assert prepare_copy(gpu_s, CASE, PLAN, L2, L2)() == 1.5
    few, full = curve_setup.TRIAL_SAMPLES, StoppingCriterion().max_samples
    assert measured == [(L2, 1, few), (L2, 2, few), (L2, 4, few), (L2, 2, full)]


def test_a_size_has_its_own_shape_as_long_as_the_l2_takes_it(measured, gpu_s):
    for written in (L2, L2 + 16):
        prepare_copy(gpu_s, CASE, PLAN, written, written)()
    assert [unroll for _, unroll, _ in measured] == [1, 2, 4, 2] * 2


def test_copies_that_the_l2_has_no_room_for_have_one_shape(measured, gpu_s):
    for written in (LARGE, 2 * LARGE, L2, 4 * LARGE):
        assert prepare_copy(gpu_s, CASE, PLAN, written, written)() == 1.5
    assert [unroll for _, unroll, _ in measured] == [1, 2, 4, 2, 2, 1, 2, 4, 2, 2]


def test_a_size_is_tried_once_for_all_curves_that_share_what_they_know(measured, gpu_s):
    for of in (gpu_s, replace(gpu_s), replace(gpu_s, unrolls={})):
        prepare_copy(of, CASE, PLAN, L2, L2)()
    assert [unroll for _, unroll, _ in measured] == [1, 2, 4, 2, 2, 1, 2, 4, 2]


def test_copies_that_are_launched_or_read_otherwise_are_tried_of_their_own(measured, gpu_s):
    eager = SimpleNamespace(**vars(CASE) | {"mode": "no_graph"})
    for case, plan, read in (
        (CASE, PLAN, LARGE),
        (CASE, PLAN, 2 * LARGE),
        (eager, PLAN, LARGE),
        (CASE, WARM, LARGE),
        (CASE, PLAN, LARGE),
    ):
        prepare_copy(gpu_s, case, plan, read, LARGE)()
    assert [unroll for _, unroll, _ in measured] == [1, 2, 4, 2] * 4 + [2]


def test_one_shape_is_measured_at_once(measured, gpu_s):
    assert prepare_copy(gpu_s, CASE, PLAN, 4096, 4096)() == 2.0
    assert measured == [(4096, 1, StoppingCriterion().max_samples)]
