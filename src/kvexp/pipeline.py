"""The path: a curve's parts are made once, each point is verified and then timed, the outcome is a row.

wait for a turn at the GPU -> allocate the curve's cache -> build the case's tensors -> bind the calls
-> prepare a replay -> verify the replay -> time the same replay -> time a copy of equal bytes -> Measurement
"""

import datetime
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, TypeVar

import torch

from kvexp import ceiling, mode, replicas, timer
from kvexp import curve as curves
from kvexp.activity import recording
from kvexp.case import Case
from kvexp.curve import Curve
from kvexp.errors import ConfigError, IncorrectResult, KvexpError, Unsupported
from kvexp.estimate import summarise
from kvexp.experiment import Experiment
from kvexp.impl import Impl, make
from kvexp.layout import Layout
from kvexp.machine import Look, Machine, columns
from kvexp.measurement import Measurement, Statistics, Status
from kvexp.op import Call, Op
from kvexp.timer import Rule, Timing
from kvexp.turns import Waits, turn
from kvexp.verify import check_untouched, poison, restore, verify_again, verify_each
from kvexp.workload import Tensors, allocate, build, patterns

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why there is nothing to measure."""

    status: Status
    reason: str


def run(
    experiment: Experiment,
    environment: dict[str, Any],
    waits: Waits = lambda _: None,
    opened: Callable[[], None] = lambda: None,
    shapes: curves.Shapes | None = None,
) -> Iterator[Measurement]:
    """One Measurement for each point of the curve, in order.

    Args:
        experiment: The curve, resolved for this process's device.
        environment: The machine's columns; they go into every row.
        waits: Told when another process measures on the GPU first.
        opened: Called when the curve is set up; nothing is timed before it returns.
        shapes: What earlier curves of this process found of copies, and this one adds to.

    Raises:
        ConfigError: The experiment is wrong whatever the machine.
    """
    cases = list(experiment.cases())
    with ExitStack() as stack:
        uuid = environment.get("device_uuid")
        machine = Machine(uuid)
        # The first to be entered is the last to be left: the turn ends when the memory is free.
        refusal = attempt(lambda: stack.enter_context(turn(uuid, waits)))
        opening = Seconds()
        with opening.of("curve_setup_s"):
            known = {} if shapes is None else shapes
            begin = functools.partial(_open, experiment, cases, stack, machine, known)
            curve = attempt(begin) if refusal is None else refusal
        opened()
        if isinstance(curve, Curve):
            with opening.of("curve_setup_s"):
                curve = attempt(functools.partial(_floored, curve, cases))
        for case in cases:
            started_at = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
            outcome = curve if isinstance(curve, Failure) else _tried(curve, case)
            if isinstance(outcome, Failure):
                outcome = Measurement(case, outcome.status, outcome.reason)
            seconds = {**opening, **outcome.seconds}
            yield replace(outcome, started_at=started_at, environment=environment, seconds=seconds)
        # The stack gives the memory back, which nobody may hold any more.
        del curve


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


def _open(
    experiment: Experiment, cases: Sequence[Case], stack: ExitStack, machine: Machine, shapes: curves.Shapes
) -> Curve:
    """The parts of the curve; what is refused for all its points is refused here."""
    largest = max(cases, key=lambda case: case.num_tokens)
    source: torch.dtype = getattr(torch, str(experiment.dtype.options["torch_dtype"]))
    options = dict(experiment.timer.options)
    l2_state = curves.L2State(str(options.pop("cache")), str(options.pop("inputs")))
    rule = Rule.from_options(options)
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
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if gpu else None
    rows = curves.least_rows(cases, op, source.itemsize, l2_bytes, l2_state)
    memory = stack.enter_context(allocate(largest, layout, source, rows))
    poison(memory.cache)
    return Curve(
        op=op,
        impl=impl,
        memory=memory,
        rule=rule,
        l2_state=l2_state,
        item_bytes=source.itemsize,
        l2_bytes=l2_bytes,
        evict=curves.sweep(l2_bytes, largest.device) if l2_bytes else None,
        empty_kernel_us=None,
        machine=machine,
        records=stack.enter_context(recording()) if largest.timer == "cupti" else None,
        shapes=shapes,
    )


def _floored(curve: Curve, cases: Sequence[Case]) -> Curve:
    """The curve with the time of an empty kernel, where there is one."""
    largest = max(cases, key=lambda case: case.num_tokens)
    if not curves.timed(curve, largest) or largest.timer not in timer.GPU_CLOCKS:
        return curve
    return replace(curve, empty_kernel_us=curves.empty_kernel_us(curve, largest))


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of this process that measures; capture wants another than the default one."""
    return torch.cuda.Stream(device)


def _tried(curve: Curve, case: Case) -> Measurement | Failure:
    """The point's measurement; the cache is all poison again, whatever happened."""
    outcome = attempt(lambda: (copied if isinstance(curve.impl, ceiling.Copy) else measured)(curve, case))
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
    seconds = Seconds()
    read, written = curve.op.bytes_moved(case, curve.item_bytes)
    plan = curves.plan(curve, case, read, written)
    with seconds.of("setup_s"):
        tensors = build(case, curve.memory, plan.mappings, plan.windows)
        bound = [
            curve.op.bind(
                curve.impl, tensors.window(i % plan.windows), tensors.slot_mappings[i % plan.mappings]
            )
            for i in range(max(plan.mappings, plan.windows))
        ]
        if case.mode == "cudagraph":
            _warm_up(bound[0], tensors)
        long, short = curves.replays(case, bound, plan)
    with seconds.of("verify_s"):
        runs: list[Any] = [(long.run, plan.mappings, plan.last_windows(long.calls))]
        if short:
            written_last = plan.last_windows(short.calls)
            runs.append((short.run, len(written_last), written_last))
        verify_each(runs, tensors, whole=not curves.timed(curve, case))
    if not curves.timed(curve, case):
        if case.timer == "profile":
            timer.profile(list(islice(cycle(bound), timer.PROFILED_CALLS)), f"kvexp {case.num_tokens}")
            restore(tensors, plan.mappings)
        reason = curve.impl.untimed or curves.UNTIMED[case.timer]
        return Measurement(case, "verified", reason, seconds=seconds)
    with seconds.of("timing_s"):
        before = curve.machine.look()
        with _looked_at(tensors, plan.mappings):
            timing = curves.timing(curve, case, long, short, plan)
        after = curve.machine.look()
    with seconds.of("verify_s"):
        windows = plan.last_windows(long.calls)
        # A sample ends with the short replay, which writes the first mappings once more.
        again = plan.last_windows(short.calls) if short else []
        verify_again(long.run, tensors, plan.mappings, windows, [*again, *windows[len(again) :]])
    with seconds.of("ceiling_s"):
        copy_us = curves.copy_us(curve, case, plan, read, written)
    return _timed(curve, case, plan, timing, (before, after), copy_us, seconds)


@contextmanager
def _looked_at(tensors: Tensors, mappings: int) -> Iterator[None]:
    """What refuses inside is raised once all of the cache has been looked at: no later look follows.

    Raises:
        IncorrectResult: A byte was written elsewhere, which is worse than not to be timed.
    """
    try:
        yield
    except KvexpError:
        restore(tensors, mappings)
        check_untouched(tensors.cache)
        raise


def copied(curve: Curve, case: Case) -> Measurement:
    """The point of impl=copy: the fastest copy of as many bytes; each shape is checked and, if asked, timed.

    Raises:
        Unsupported: There is no such copy here, or only a profiler is to see it.
        IncorrectResult: Other bytes arrived than were to be copied.
    """
    if case.timer == "profile":
        raise Unsupported("impl=copy is the ceiling and no implementation; timer=profile shows those alone")
    patterns.check(case)
    seconds = Seconds()
    read, written = curve.op.bytes_moved(case, curve.item_bytes)
    plan = curves.plan(curve, case, read, written)
    shapes = 0
    found: list[tuple[float, Timing, tuple[Look | None, Look | None]]] = []
    unrolls = ceiling.unrolls(case.device, written)
    for moves, long, short in curves.copies(curve, case, plan, read, written, unrolls):
        shapes += 1
        with seconds.of("verify_s"):
            ceiling.check(curve.memory, moves, long)
        if not curves.timed(curve, case):
            continue
        with seconds.of("timing_s"):
            before = curve.machine.look()
            timing = curves.timing(curve, case, long, short, plan)
            after = curve.machine.look()
        with seconds.of("verify_s"):
            ceiling.check(curve.memory, moves, long)
        found.append((curves.median_us(timing), timing, (before, after)))
    if not shapes:
        raise Unsupported(
            "impl=copy has no copy for this point: one writes at least 16 bytes and at most the cache, "
            "and on a CPU it reads no more than it writes"
        )
    if not found:
        return Measurement(case, "verified", curves.UNTIMED[case.timer], seconds=seconds)
    copy_us, timing, looks = min(found, key=lambda shape: shape[0])
    return _timed(curve, case, plan, timing, looks, copy_us, seconds)


def _timed(
    curve: Curve,
    case: Case,
    plan: replicas.Plan,
    timing: Timing,
    looks: tuple[Look | None, Look | None],
    copy_us: float | None,
    seconds: dict[str, float],
) -> Measurement:
    return Measurement(
        case=case,
        status="ok",
        statistics=_statistics(timing),
        bytes_moved=sum(curve.op.bytes_moved(case, curve.item_bytes)),
        replicas=plan.calls,
        cache_state=plan.cache_state,
        inputs_state=plan.inputs_state,
        host_us=timing.host_us,
        copy_us=copy_us,
        empty_kernel_us=curve.empty_kernel_us,
        samples_us=timing.samples_us,
        machine=columns(*looks),
        seconds=seconds,
    )


class Seconds(dict[str, float]):
    """Where a point's time goes: seconds by part."""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What happens inside is added to the part."""
        begin = time.perf_counter()
        yield
        self[part] = self.get(part, 0.0) + time.perf_counter() - begin


def _warm_up(call: Call, tensors: Tensors) -> None:
    """The call has run once, outside any capture, and left no trace in its slots."""
    call()
    torch.cuda.synchronize()
    restore(tensors, 1)


def _statistics(timing: Timing) -> Statistics:
    statistics = summarise(timing.samples_us)
    if statistics.latency_us <= 0:
        raise KvexpError("the latency is below what the timer resolves")
    return statistics
