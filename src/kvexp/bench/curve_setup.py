"""What the points of a curve share, and how a point's calls are replayed and timed on it."""

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
from kvexp.gpu.cupti import Activity
from kvexp.gpu.nvml import GpuMonitor
from kvexp.impl import Impl
from kvexp.op import Call, Op
from kvexp.statistics import summarise
from kvexp.timer import Replay, Rule, replay_plan
from kvexp.workload import Memory, slots
from kvexp.workload.inputs import window_step

UNTIMED = {
    "none": "timer=none: not timed",
    "profile": "timer=profile: run for a profiler, not timed",
}
"""Timers without a clock, and what a point says of it."""


FEW = 5
"""Samples that choose among shapes of the copy."""

WARM = 1
"""Samples of a copy that are thrown away: the op's have warmed the machine, and in a graph one loads it."""


@dataclass(frozen=True)
class L2State:
    """What a call is to find in the GPU's L2.

    Attributes:
        cache: `timer.cache`: its slots are to be `cold` or `hot`; `auto` is cold where that can be.
        inputs: `timer.inputs`: its keys and values are to be `cold` or `hot`.
    """

    cache: str
    inputs: str


Shapes = dict[tuple[object, ...], int]
"""Vectors a thread of the fastest copy, by what distinguishes copies of which another shape may be."""


@dataclass(frozen=True)
class Curve:
    """What all points of a curve share.

    Attributes:
        op: What is written.
        impl: Who writes it.
        memory: The cache and the inputs.
        rule: When to stop sampling.
        l2_state: What the L2 is to hold.
        item_bytes: Bytes of a source item.
        l2_bytes: The GPU's L2; None on a CPU.
        evict: Sweeps the L2 by reading.
        empty_kernel_us: An empty kernel's time in a graph; None where there is none.
        machine: The GPU to look at while it measures.
        records: What the GPU runs, for timer=cupti.
        shapes: The shape of the fastest copy by what is copied how, as far as it was tried in this process.
    """

    op: Op
    impl: Impl
    memory: Memory
    rule: Rule
    l2_state: L2State
    item_bytes: int
    l2_bytes: int | None
    evict: Call | None
    empty_kernel_us: float | None
    machine: GpuMonitor
    records: Activity | None = None
    shapes: Shapes = field(default_factory=dict)


def timed(curve: Curve, case: Case) -> bool:
    """Whether the point is to be timed once it is verified."""
    return case.timer not in UNTIMED and not curve.impl.untimed


def plan(curve: Curve, case: Case, read: int, written: int) -> replay_plan.Plan:
    """How many calls a replay of the point holds, and what they walk through.

    Raises:
        Unsupported: What was asked of the L2 cannot be.
    """
    if not timed(curve, case):
        return replay_plan.ONCE
    return _timed_plan(case, read, written, curve.l2_bytes, curve.l2_state)


def least_rows(
    cases: Sequence[Case], op: Op, item_bytes: int, l2_bytes: int | None, l2_state: L2State
) -> int:
    """Return the rows that calls with cold inputs walk through at any point; 0 where inputs are hot."""
    if l2_state.inputs != "cold" or l2_bytes is None:
        return 0
    rows = 0
    for case in cases:
        with suppress(Unsupported):  # said again, of that point, when it is measured
            slots.check(case)
            moved = op.bytes_moved(case, item_bytes)
            windows = _timed_plan(case, *moved, l2_bytes, l2_state).windows
            rows = max(rows, windows * window_step(case, item_bytes, cold=True))
    return rows


def _timed_plan(
    case: Case, read: int, written: int, l2_bytes: int | None, l2_state: L2State
) -> replay_plan.Plan:
    on_its_clock = l2_bytes is not None and case.timer in timer.GPU_CLOCKS
    if not on_its_clock and l2_state != L2State("auto", "hot"):
        raise Unsupported(
            f"timer.cache={l2_state.cache} timer.inputs={l2_state.inputs} needs a GPU and timer=cuda_event "
            "or cupti; elsewhere they are auto and hot"
        )
    if l2_bytes is None:
        return replay_plan.cpu_plan(case.mappings, read + written)
    if not on_its_clock:
        # One call, again and again: the same slots and the same rows.
        return replace(replay_plan.ONCE, cache_state="hot", inputs_state="hot")
    graph = case.mode == "cudagraph"
    cache, inputs = l2_state.cache, l2_state.inputs
    plan = replay_plan.gpu_plan(case.mappings, read + written, written, l2_bytes, graph, cache, inputs)
    # Of records nothing has to be subtracted.
    return plan if case.timer == "cuda_event" else plan.without_short_calls()


def replay(curve: Curve, case: Case, turns: Sequence[Sequence[Call]], plan: replay_plan.Plan) -> Replay:
    """Prepare the calls of each turn, as many as planned, to be timed by the case's clock."""
    prepare = functools.partial(mode.prepare, case.mode)
    evict = curve.evict if plan.evict else None
    if plan.short_calls:
        return timer.cuda_event(prepare, turns, plan.short_calls, evict, eager=case.mode == "no_graph")
    runs = [prepare(calls) for calls in turns]
    if curve.records:
        return timer.cupti(runs, plan.calls, evict, curve.records)
    return timer.wall_clock(runs, plan.calls, on_gpu=case.device != "cpu")


def copying(
    curve: Curve, case: Case, plan: replay_plan.Plan, read: int, written: int
) -> Callable[[], float | None]:
    """Prepares the copy that reads and writes as many bytes as a call, to be measured as the op was.

    Where there are several shapes of copy, a few samples of each say which one is measured, once for all
    curves of this process. Copies that the L2 has no room for are all alike: there the memory decides.

    Returns:
        Measures the fastest copy: its median time in microseconds, None where there is none.
    """
    unrolls = equal_copy.unrolls(case.device, written)
    large = curve.l2_bytes is not None and written > replay_plan.COLD_FACTOR * curve.l2_bytes
    size = (read // written, "large") if large else (read, written)
    l2_state = (plan.cache_state, plan.inputs_state, plan.evict)
    kind = (case.device, case.mode, case.timer, *l2_state, *size)
    if kind in curve.shapes:
        unrolls = (curve.shapes[kind],)
    prepared = functools.partial(copies, curve, case, plan, read, written)
    shapes = prepared(unrolls)
    first = next(shapes, None)

    def measure() -> float | None:
        if first is None:
            return None
        replays = (replay for _, replay in chain([first], shapes))
        rule = replace(curve.rule, warmup=WARM)
        if len(unrolls) > 1:
            few = replace(rule, min_samples=FEW, max_samples=FEW)
            tried = [
                (median_us(replay, few), unroll) for unroll, replay in zip(unrolls, replays, strict=True)
            ]
            curve.shapes[kind] = min(tried)[1]
            replays = (replay for _, replay in prepared([curve.shapes[kind]]))
        (found_us,) = (median_us(replay, rule) for replay in replays)
        return _resolved(found_us)

    return measure


def copies(
    curve: Curve, case: Case, plan: replay_plan.Plan, read: int, written: int, unrolls: Sequence[int]
) -> Iterator[tuple[Sequence[equal_copy.Move], Replay]]:
    """For each shape of copy, by vectors a thread: what its calls do, and their replay.

    The cache is to be all poison, and is so again when the next one comes.
    """
    moves = equal_copy.moves(curve.memory, case.num_tokens, read, written, plan)
    for unroll in unrolls if moves else ():
        calls = [move.call(unroll) for move in moves]
        calls[0]()
        equal_copy.restore(curve.memory, moves[:1])
        yield moves, replay(curve, case, [list(islice(cycle(calls), plan.all_calls))], plan)
        equal_copy.restore(curve.memory, moves)


def median_us(replay: Replay, rule: Rule) -> float:
    """The median of as many samples as the rule asks for."""
    return summarise(timer.timing(replay, rule).samples_us).latency_us


def empty_kernel_us(curve: Curve, case: Case) -> float | None:
    """Median time of a kernel that does nothing, launched as the case's calls are."""
    call = equal_copy.empty_call()
    call()
    plan = replay_plan.gpu_plan(1, 0, 1, 0, graph=case.mode == "cudagraph")
    return _resolved(median_us(replay(curve, case, [[call] * plan.all_calls], plan), curve.rule))


def _resolved(found_us: float) -> float | None:
    """The median, or None where a difference of replays is below what the clock resolves."""
    return found_us if found_us > 0 else None


def sweep(l2_bytes: int, device: str) -> Call:
    """Reads more than twice the L2, so that what was in it is evicted and no dirty line is left."""
    memory = torch.ones(replay_plan.COLD_FACTOR * l2_bytes // 8 + 1, dtype=torch.int64, device=device)
    total = torch.empty((), dtype=torch.int64, device=device)

    def sweep() -> None:
        torch.sum(memory, dim=0, out=total)

    sweep()  # nothing is loaded for the first time while it is captured
    return sweep
