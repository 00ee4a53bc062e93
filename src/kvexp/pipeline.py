"""The path: a curve's parts are made once, each point is verified and then timed, the outcome is a row.

allocate the curve's cache -> build the case's tensors -> bind the calls -> prepare a replay
-> verify the replay -> time the same replay -> time a copy of equal bytes -> Measurement
"""

import datetime
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, TypeVar

import torch

from kvexp import ceiling, mode, replicas, timer
from kvexp.case import Case
from kvexp.errors import ConfigError, IncorrectResult, KvexpError, Unsupported
from kvexp.estimate import summarise
from kvexp.experiment import Experiment
from kvexp.impl import Impl, make
from kvexp.layout import Layout
from kvexp.machine import Machine, columns
from kvexp.measurement import Measurement, Statistics, Status
from kvexp.op import Call, Op
from kvexp.timer import Replay, Rule, Timing
from kvexp.verify import poison, restore, verify, verify_again
from kvexp.workload import Memory, Tensors, allocate, build, patterns

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why there is nothing to measure."""

    status: Status
    reason: str


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


def run(experiment: Experiment, environment: dict[str, Any]) -> Iterator[Measurement]:
    """One Measurement for each point of the curve, in order.

    Args:
        experiment: The curve, resolved for this process's device.
        environment: The machine's columns; they go into every row.

    Raises:
        ConfigError: The experiment is wrong whatever the machine.
    """
    cases = list(experiment.cases())
    with ExitStack() as stack:
        machine = Machine(environment.get("device_uuid"))
        curve = attempt(lambda: _open(experiment, cases, stack, machine))
        for case in cases:
            started_at = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
            outcome = curve if isinstance(curve, Failure) else _tried(curve, case)
            if isinstance(outcome, Failure):
                outcome = Measurement(case, outcome.status, outcome.reason)
            yield replace(outcome, started_at=started_at, environment=environment)


def attempt(work: Callable[[], T]) -> T | Failure:
    """The work's result, or why there is none: the one place where errors become rows.

    Raises:
        ConfigError: The experiment is wrong whatever the machine.
    """
    try:
        return work()
    except ConfigError:
        raise
    except Unsupported as refusal:
        return Failure("skipped", str(refusal))
    except IncorrectResult as difference:
        return Failure("incorrect", str(difference))
    except KvexpError as error:
        return Failure("failed", str(error))
    except Exception as error:  # noqa: BLE001  # whatever a kernel or a driver raises is this point's outcome
        return Failure("failed", f"{type(error).__name__}: {error}")


def _open(experiment: Experiment, cases: Sequence[Case], stack: ExitStack, machine: Machine) -> Curve:
    """The parts of the curve; what is refused for all its points is refused here."""
    largest = max(cases, key=lambda case: case.num_tokens)
    source: torch.dtype = getattr(torch, str(experiment.dtype.options["torch_dtype"]))
    rule = Rule.from_options(dict(experiment.timer.options))
    impl: Impl = make(experiment.impl, device=largest.device)
    op: Op = make(experiment.op)
    layout: Layout = make(experiment.layout)
    op.check(largest, layout, source.itemsize)
    mode.check_mode(largest.mode, largest.device)
    timer.check_timer(largest.timer, largest.device)
    patterns.check(min(cases, key=lambda case: case.num_tokens))
    gpu = largest.device != "cpu"
    if gpu:
        device = torch.device(largest.device)
        stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.cuda.stream(_stream(device)))
    memory = stack.enter_context(allocate(largest, layout, source))
    poison(memory.cache)
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if gpu else None
    curve = Curve(
        op=op,
        impl=impl,
        memory=memory,
        rule=rule,
        item_bytes=source.itemsize,
        l2_bytes=l2_bytes,
        evict=_sweep(l2_bytes, largest.device) if l2_bytes else None,
        empty_kernel_us=None,
        machine=machine,
    )
    if not _timed(curve, largest) or largest.timer != "cuda_event":
        return curve
    return replace(curve, empty_kernel_us=_empty_kernel_us(curve, largest))


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of this process that measures; capture wants another than the default one."""
    return torch.cuda.Stream(device)


def _tried(curve: Curve, case: Case) -> Measurement | Failure:
    """The point's measurement; the cache is all poison again, whatever happened."""
    outcome = attempt(lambda: measured(curve, case))
    if isinstance(outcome, Failure):
        attempt(lambda: poison(curve.memory.cache))
        attempt(curve.memory.fill)
    return outcome


def measured(curve: Curve, case: Case) -> Measurement:
    """The point verified and, where it can be, timed.

    Raises:
        Unsupported: The point cannot be done here.
        IncorrectResult: The calls wrote wrong bytes.
    """
    patterns.check(case)
    read, written = curve.op.bytes_moved(case, curve.item_bytes)
    plan = _plan(curve, case, read, written)
    tensors = build(case, curve.memory, plan.mappings)
    bound = [curve.op.bind(curve.impl, tensors, slots) for slots in tensors.slot_mappings]
    if case.mode == "cudagraph":
        _warm_up(bound[0], tensors)
    long, short = _replays(case, bound, plan)
    verify(long.run, tensors, plan.mappings)
    if not _timed(curve, case):
        return Measurement(case, "verified", curve.impl.untimed or "timer=none: not timed")
    if short:
        verify(short.run, tensors, min(short.calls, plan.mappings))
    before = curve.machine.look()
    timing = _timing(curve, case, long, short, plan)
    after = curve.machine.look()
    verify_again(long.run, tensors, plan.mappings)
    return Measurement(
        case=case,
        status="ok",
        statistics=_statistics(timing),
        bytes_moved=read + written,
        replicas=plan.calls,
        cache_state=plan.cache_state,
        host_us=timing.host_us,
        copy_us=_copy_us(curve, case, plan, read, written),
        empty_kernel_us=curve.empty_kernel_us,
        samples_us=timing.samples_us,
        machine=columns(before, after),
    )


def _timed(curve: Curve, case: Case) -> bool:
    return case.timer != "none" and not curve.impl.untimed


def _plan(curve: Curve, case: Case, read: int, written: int) -> replicas.Plan:
    if not _timed(curve, case):
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


def _warm_up(call: Call, tensors: Tensors) -> None:
    """The call has run once, outside any capture, and left no trace in its slots."""
    call()
    torch.cuda.synchronize()
    restore(tensors, 1)


def _replays(case: Case, bound: Sequence[Call], plan: replicas.Plan) -> tuple[Replay, Replay | None]:
    calls = list(islice(cycle(bound), plan.calls))
    long = Replay(mode.prepare(case.mode, calls), plan.calls)
    if not plan.short_calls:
        return long, None
    return long, Replay(mode.prepare(case.mode, calls[: plan.short_calls]), plan.short_calls)


def _timing(curve: Curve, case: Case, long: Replay, short: Replay | None, plan: replicas.Plan) -> Timing:
    if case.timer == "wall_clock" or short is None:
        return timer.wall_clock(long, curve.rule, on_gpu=case.device != "cpu")
    evict = curve.evict if plan.evict else None
    return timer.cuda_event(long, short, evict, curve.rule, eager=case.mode == "no_graph")


def _statistics(timing: Timing) -> Statistics:
    statistics = summarise(timing.samples_us)
    if statistics.latency_us <= 0:
        raise KvexpError("the latency is below what the timer resolves")
    return statistics


def _copy_us(curve: Curve, case: Case, plan: replicas.Plan, read: int, written: int) -> float | None:
    """Median time of the fastest copy that reads and writes as many bytes, measured as the op was."""
    medians = []
    for unroll in ceiling.unrolls(case.device, written):
        calls = ceiling.copy_calls(curve.memory, case.num_tokens, read, written, plan.mappings, unroll)
        if not calls:
            return None
        calls[0]()
        long, short = _replays(case, calls, plan)
        timing = _timing(curve, case, long, short, plan)
        medians.append(summarise(timing.samples_us).latency_us)
    ceiling.restore(curve.memory, written, len(calls))
    return min(medians)


def _empty_kernel_us(curve: Curve, case: Case) -> float:
    call = ceiling.empty_call(case.device)
    call()
    plan = replicas.gpu_plan(1, 0, 1, 0, graph=case.mode == "cudagraph")
    long, short = _replays(case, [call], plan)
    return summarise(_timing(curve, case, long, short, plan).samples_us).latency_us


def _sweep(l2_bytes: int, device: str) -> Call:
    """Reads more than twice the L2, so that what was in it is evicted and no dirty line is left."""
    memory = torch.ones(replicas.COLD_FACTOR * l2_bytes // 8 + 1, dtype=torch.int64, device=device)
    total = torch.empty((), dtype=torch.int64, device=device)

    def sweep() -> None:
        torch.sum(memory, dim=0, out=total)

    return sweep
