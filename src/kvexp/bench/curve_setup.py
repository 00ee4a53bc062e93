"""Hold what the points of a curve share; plan, prepare and time the replays of a point on it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice

import torch

from kvexp import timer
from kvexp.bench import equal_copy, mode
from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.gpu.nvml import GpuMonitor
from kvexp.impl import Impl
from kvexp.layout import Layout
from kvexp.op import Call, Op
from kvexp.statistics import summarise
from kvexp.timer import Timer, replay_plan
from kvexp.timer.cuda_event import CudaEvent
from kvexp.timer.replay import Replay, Turns
from kvexp.timer.stopping_criterion import StoppingCriterion
from kvexp.timer.wall_clock import WallClock
from kvexp.workload import Memory

TRIAL_SAMPLES = 5
"""Samples of each unroll of the copy, to choose the fastest."""

COPY_WARMUP = 1
"""Samples of a copy that are thrown away: the op's have warmed the machine, and in a graph one loads it."""


Unrolls = dict[tuple[object, ...], int]
"""The fastest copy's vectors a thread (its unroll), by device, mode, timer, L2 state and bytes."""


@dataclass(frozen=True)
class Curve:
    """Hold what all points of a curve share.

    Attributes:
        op: What is written.
        impl: What writes it.
        layout: The cache's.
        timer: What times it.
        memory: The cache and the inputs.
        item_bytes: Bytes of a source item.
        l2_bytes: The GPU's L2; None on a CPU.
        flush_l2: Flushes the L2 by reading; None on a CPU.
        empty_kernel_us: An empty kernel's time in a graph; None where there is none.
        machine: Reads the GPU's clocks and load.
        persisting_bytes: Bytes of the L2 that were set aside for persisting lines when `impl` was made.
        unrolls: The fastest copies found so far in this process.
    """

    op: Op
    impl: Impl
    layout: Layout
    timer: Timer
    memory: Memory
    item_bytes: int
    l2_bytes: int | None
    flush_l2: Call | None
    empty_kernel_us: float | None
    machine: GpuMonitor
    persisting_bytes: int = 0
    unrolls: Unrolls = field(default_factory=dict)

    @property
    def untimed(self) -> str:
        """Say why its points are verified and not timed; empty where they are timed."""
        return self.impl.untimed or self.timer.untimed

    def plan(self, case: Case, read: int, written: int) -> replay_plan.Plan:
        """Plan the replay of a point: a single call where it is not timed; see `Timer.plan`."""
        places = self.op.count_places(case)
        return replay_plan.ONCE if self.untimed else self.timer.plan(places, read, written, self.l2_bytes)


def list_cold_windows(
    cases: Sequence[Case], op: Op, timer: Timer, item_bytes: int, l2_bytes: int | None
) -> list[tuple[Case, int]]:
    """List the points with the number of windows that calls walk through, where these are to be cold."""
    found: list[tuple[Case, int]] = []
    if timer.inputs != "cold" or l2_bytes is None:
        return found
    for case in cases:
        with suppress(Unsupported):  # raised again when that point is measured
            plan = timer.plan(op.count_places(case), *op.bytes_moved(case, item_bytes), l2_bytes)
            found.append((case, plan.windows))
    return found


def make_flush(l2_bytes: int, device: str) -> Call:
    """Make a call that reads more than twice the L2, which evicts what was in it and leaves no dirty line."""
    memory = torch.ones(replay_plan.COLD_FACTOR * l2_bytes // 8 + 1, dtype=torch.int64, device=device)
    total = torch.empty((), dtype=torch.int64, device=device)

    def flush() -> None:
        torch.sum(memory, dim=0, out=total)

    flush()  # nothing is loaded for the first time while it is captured
    return flush


def make_replay(curve: Curve, case: Case, turns: Turns, plan: replay_plan.Plan) -> Replay:
    """Prepare the calls of each turn, as many as planned, to be timed by the curve's timer."""
    prepare = functools.partial(mode.prepare, case.mode)
    flush_l2 = curve.flush_l2 if plan.flush_l2 else None
    # Of untimed calls the runs alone are used, and nobody takes a sample.
    clock = WallClock(case.device, case.mode) if curve.untimed else curve.timer
    return clock.make_replay(prepare, turns, plan, flush_l2)


def prepare_copy(
    curve: Curve, case: Case, plan: replay_plan.Plan, read: int, written: int
) -> Callable[[], float | None]:
    """Prepare the copy that reads and writes as many bytes as a call, to be timed as the op was.

    What is returned times the fastest copy: its median in microseconds, None where there is none. Where
    several unrolls are possible, a few samples of each choose it, once for all curves of this process. Copies
    larger than the L2 share one choice: there the memory decides.
    """
    unrolls = equal_copy.list_unrolls(curve.memory, written)
    is_large = curve.l2_bytes is not None and written > replay_plan.COLD_FACTOR * curve.l2_bytes
    size = (read // written, "large") if is_large else (read, written)
    l2_state = (plan.cache_state, plan.inputs_state, plan.flush_l2)
    key = (case.device, case.mode, case.timer, *l2_state, *size)
    if key in curve.unrolls:
        unrolls = (curve.unrolls[key],)
    prepare = functools.partial(prepare_copies, curve, case, plan, read, written)
    copies = prepare(unrolls)
    first = next(copies, None)

    def measure() -> float | None:
        if first is None:
            return None
        replays = (replay for _, replay in chain([first], copies))
        criterion = replace(curve.timer.criterion, warmup=COPY_WARMUP)
        if len(unrolls) > 1:
            trial = replace(criterion, min_samples=TRIAL_SAMPLES, max_samples=TRIAL_SAMPLES)
            trials = [
                (measure_median(replay, trial), unroll)
                for unroll, replay in zip(unrolls, replays, strict=True)
            ]
            curve.unrolls[key] = min(trials)[1]
            replays = (replay for _, replay in prepare([curve.unrolls[key]]))
        (copy_us,) = (measure_median(replay, criterion) for replay in replays)
        return _drop_unresolved(copy_us)

    return measure


def prepare_copies(
    curve: Curve, case: Case, plan: replay_plan.Plan, read: int, written: int, unrolls: Sequence[int]
) -> Iterator[tuple[Sequence[equal_copy.Move], Replay]]:
    """Yield, for each unroll, what the calls of the copy do, and their replay.

    The cache must be all poison, and is poisoned again before the next one is yielded.
    """
    moves = equal_copy.plan_moves(curve.memory, curve.op.count_indices(case), read, written, plan)
    for unroll in unrolls if moves else ():
        calls = [move.make_call(unroll) for move in moves]
        calls[0]()
        equal_copy.restore(curve.memory, moves[:1])
        yield moves, make_replay(curve, case, [list(islice(cycle(calls), plan.all_calls))], plan)
        equal_copy.restore(curve.memory, moves)


def measure_median(replay: Replay, criterion: StoppingCriterion) -> float:
    """Return the median latency of a call in microseconds."""
    return summarise(timer.time_replay(replay, criterion).samples_us).latency_us


def measure_empty_kernel(curve: Curve, case: Case) -> float | None:
    """Return the median time of a kernel that does nothing, launched as the case's calls are.

    CUDA events time it, whatever the curve's timer.
    """
    call = equal_copy.make_empty_call()
    call()
    plan = replay_plan.plan_on_gpu(1, 0, 1, 0, graph=case.mode == "cudagraph")
    by_events = replace(curve, timer=CudaEvent(case.device, case.mode))
    replay = make_replay(by_events, case, [[call] * plan.all_calls], plan)
    return _drop_unresolved(measure_median(replay, curve.timer.criterion))


def _drop_unresolved(median_us: float) -> float | None:
    """Return the median, or None where a difference of replays is below what the clock resolves."""
    return median_us if median_us > 0 else None
