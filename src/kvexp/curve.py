"""What the points of a curve share, and how a point's calls are replayed and timed on it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import torch

from kvexp import ceiling, mode, replicas, timer
from kvexp.case import Case
from kvexp.estimate import summarise
from kvexp.impl import Impl
from kvexp.machine import Machine
from kvexp.op import Call, Op
from kvexp.timer import Replay, Rule, Timing
from kvexp.workload import Memory


@dataclass(frozen=True)
class Curve:
    """What all points of a curve share.

    Attributes:
        op: What is written.
        impl: Who writes it.
        memory: The cache and the inputs.
        rule: When to stop sampling.
        item_bytes: Bytes of a source item.
        l2_bytes: The GPU's L2; None on a CPU.
        evict: Sweeps the L2 by reading.
        empty_kernel_us: An empty kernel's time in a graph; None where there is none.
        machine: The GPU to look at while it measures.
    """

    op: Op
    impl: Impl
    memory: Memory
    rule: Rule
    item_bytes: int
    l2_bytes: int | None
    evict: Call | None
    empty_kernel_us: float | None
    machine: Machine


def timed(curve: Curve, case: Case) -> bool:
    """Whether the point is to be timed once it is verified."""
    return case.timer != "none" and not curve.impl.untimed


def plan(curve: Curve, case: Case, read: int, written: int) -> replicas.Plan:
    """How many calls a replay of the point holds, and through how many slot mappings they walk."""
    if not timed(curve, case):
        return replicas.ONCE
    if curve.l2_bytes is None:
        return replicas.cpu_plan(case.mappings, read + written)
    if case.timer == "wall_clock":
        return replace(replicas.ONCE, cache_state="warm")
    return replicas.gpu_plan(
        case.mappings,
        read + written,
        written,
        curve.l2_bytes,
        graph=case.mode == "cudagraph",
    )


def replays(case: Case, bound: Sequence[Call], plan: replicas.Plan) -> tuple[Replay, Replay | None]:
    """The long replay of these calls, and the short one whose time is subtracted where there is one."""
    calls = list(islice(cycle(bound), plan.calls))
    long = Replay(mode.prepare(case.mode, calls), plan.calls)
    if not plan.short_calls:
        return long, None
    return long, Replay(mode.prepare(case.mode, calls[: plan.short_calls]), plan.short_calls)


def timing(curve: Curve, case: Case, long: Replay, short: Replay | None, plan: replicas.Plan) -> Timing:
    """Samples of one call's latency, by the case's clock."""
    if case.timer == "wall_clock" or short is None:
        return timer.wall_clock(long, curve.rule, on_gpu=case.device != "cpu")
    evict = curve.evict if plan.evict else None
    return timer.cuda_event(long, short, evict, curve.rule, eager=case.mode == "no_graph")


def copy_us(curve: Curve, case: Case, plan: replicas.Plan, read: int, written: int) -> float | None:
    """Median time of the fastest copy that reads and writes as many bytes, measured as the op was."""
    medians = []
    for unroll in ceiling.unrolls(case.device, written):
        calls = ceiling.copy_calls(curve.memory, case.num_tokens, read, written, plan.mappings, unroll)
        if not calls:
            return None
        calls[0]()
        long, short = replays(case, calls, plan)
        found = timing(curve, case, long, short, plan)
        medians.append(summarise(found.samples_us).latency_us)
    ceiling.restore(curve.memory, written, len(calls))
    return min(medians)


def empty_kernel_us(curve: Curve, case: Case) -> float:
    """Median time of a kernel that does nothing, launched as the case's calls are."""
    call = ceiling.empty_call(case.device)
    call()
    plan = replicas.gpu_plan(1, 0, 1, 0, graph=case.mode == "cudagraph")
    long, short = replays(case, [call], plan)
    return summarise(timing(curve, case, long, short, plan).samples_us).latency_us


def sweep(l2_bytes: int, device: str) -> Call:
    """Reads more than twice the L2, so that what was in it is evicted and no dirty line is left."""
    memory = torch.ones(replicas.COLD_FACTOR * l2_bytes // 8 + 1, dtype=torch.int64, device=device)
    total = torch.empty((), dtype=torch.int64, device=device)

    def sweep() -> None:
        torch.sum(memory, dim=0, out=total)

    return sweep
