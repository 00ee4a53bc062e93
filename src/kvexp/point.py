"""The path of a point, on a curve whose parts are made: verified, then timed, the same object.

build the case's tensors -> bind the calls -> prepare a replay -> verify the replay -> time the same replay
-> verify it again -> time a copy of equal bytes -> Measurement
"""

import statistics as stats
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice

import torch

from kvexp import ceiling, replicas, timer
from kvexp import curve as curves
from kvexp.case import Case
from kvexp.curve import Curve
from kvexp.errors import KvexpError, Unsupported
from kvexp.estimate import summarise
from kvexp.machine import Look, columns
from kvexp.measurement import Measurement, Statistics
from kvexp.op import Call
from kvexp.timer import Timing
from kvexp.law import restore, untouched, verify, verify_again, verify_slots
from kvexp.workload import Tensors, build, patterns

LEAST_OF_EMPTY = 0.5
"""No call takes less of an empty kernel's time than this, whatever the noise of both."""


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
            curve.op.bind(curve.impl, tensors.window(window), tensors.slot_mappings[mapping])
            for mapping, window in plan.walk()
        ]
        if case.mode == "cudagraph":
            _warm_up(bound[0], tensors)
        replay = curves.replay(curve, case, bound, plan)
        windows = plan.last_windows()
    with seconds.of("verify_s"):
        check = verify_slots if curves.timed(curve, case) else verify
        check(replay.run, tensors, plan.mappings, windows)
    if not curves.timed(curve, case):
        if case.timer == "profile":
            timer.profile(list(islice(cycle(bound), timer.PROFILED_CALLS)), f"kvexp {case.num_tokens}")
            restore(tensors, plan.mappings)
        reason = curve.impl.untimed or curves.UNTIMED[case.timer]
        return Measurement(case, "verified", reason, seconds=seconds)
    with seconds.of("timing_s"):
        before = curve.machine.look()
        with _looked_at(tensors, plan.mappings):
            timing = timer.timing(replay, curve.rule)
        after = curve.machine.look()
    with seconds.of("verify_s"):
        verified = verify_again(replay.run, tensors, plan.mappings, windows)
    try:
        with seconds.of("ceiling_s"):
            measure_copy = curves.copying(curve, case, plan, read, written)
    finally:  # a byte that was written elsewhere is worse than a ceiling that cannot be measured
        with seconds.of("verify_s"):
            verified()
    with seconds.of("ceiling_s"):
        copy_us = measure_copy()
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
        untouched(tensors.cache)()
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
    for moves, replay in curves.copies(curve, case, plan, read, written, unrolls):
        shapes += 1
        with seconds.of("verify_s"):
            ceiling.check(curve.memory, moves, replay)
        if not curves.timed(curve, case):
            continue
        with seconds.of("timing_s"):
            before = curve.machine.look()
            timing = timer.timing(replay, curve.rule)
            after = curve.machine.look()
        with seconds.of("verify_s"):
            ceiling.check(curve.memory, moves, replay)
        found.append((stats.median(timing.samples_us), timing, (before, after)))
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
        statistics=_statistics(timing, curve.empty_kernel_us),
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


def _statistics(timing: Timing, empty_kernel_us: float | None) -> Statistics:
    """What the samples say.

    Raises:
        KvexpError: They say nothing of the call: it launches on another stream than the one that is timed.
    """
    statistics = summarise(timing.samples_us)
    if statistics.latency_us <= 0:
        raise KvexpError("the latency is below what the timer resolves")
    if empty_kernel_us and statistics.latency_us < LEAST_OF_EMPTY * empty_kernel_us:
        raise KvexpError(
            f"a call takes {statistics.latency_us:.3g} us and an empty kernel {empty_kernel_us:.3g}, "
            "so it does not run on torch's current stream, which is what is timed"
        )
    return statistics
