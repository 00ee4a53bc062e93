"""The path of a point, on a curve whose parts are made: verified, then timed, the same object.

build the case's tensors -> bind the calls -> prepare a replay -> change the data in place -> verify the
replay -> time the same replay, one sample of it audited -> change the data again, verify again -> time a copy
of equal bytes -> Measurement
"""

import statistics as stats
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, cycle, islice

import torch

from kvexp import timer
from kvexp.bench import curve_setup as curves
from kvexp.bench import equal_copy, mode
from kvexp.bench.curve_setup import Curve
from kvexp.bench.verify import check_left, check_run, check_untouched, poison, restore
from kvexp.case import Case
from kvexp.errors import IncorrectResult, KvexpError, Unsupported
from kvexp.gpu.nvml import GpuState, make_columns
from kvexp.measurement import Measurement, Statistics
from kvexp.op import Call
from kvexp.statistics import summarise
from kvexp.timer import Replay, Timing, replay_plan
from kvexp.workload import LAST, TIMED, Tensors, build, slots
from kvexp.workload.inputs import window_step

KEPT = "the call keeps what it saw when it was bound, and writes that instead of what is there when it runs"
"""Of a call that is right only as long as keys, values and slots stay what they were."""

AUDITED_BYTES = 128 << 20
"""Of rows that an audit looks at, in mappings drawn at random: to look at all takes several samples' time."""

LEAST_OF_EMPTY = 0.5
"""No call takes less of an empty kernel's time than this, whatever the noise of both."""


def measured(curve: Curve, case: Case) -> Measurement:
    """Verify the point and, where it can be, time it.

    Raises:
        Unsupported: The point cannot be done here.
        IncorrectResult: The calls wrote wrong bytes.
    """
    slots.check(case)
    seconds = Seconds()
    read, written = curve.op.bytes_moved(case, curve.item_bytes)
    plan, timed = curves.plan(curve, case, read, written), curves.timed(curve, case)
    with seconds.of("setup_s"):
        step = window_step(case, curve.item_bytes, cold=plan.inputs_state == "cold")
        tensors = build(case, curve.memory, plan.mappings, plan.windows, step)
        turns = _bind(curve, tensors, plan)
        if case.mode == "cudagraph":
            _warm_up(turns[0][0], tensors)
        replay = curves.replay(curve, case, turns, plan)
        windows = [plan.last_windows(turn) for turn in range(replay_plan.TURNS)]
    with seconds.of("verify_s"):
        # What calls were bound and captured with is not what they are to write.
        _renew(curve, tensors, TIMED)
        _check_first(curve, replay, tensors, plan, every_run=not timed)
    if not timed:
        if case.timer == "profile":
            timer.profile(list(islice(cycle(turns[0]), timer.PROFILED_CALLS)), f"kvexp {case.num_tokens}")
        with seconds.of("verify_s"):
            _check_last(curve, replay, tensors, windows)()
        reason = curve.impl.untimed or curves.UNTIMED[case.timer]
        return Measurement(case, "verified", reason, seconds=seconds)
    with seconds.of("timing_s"):
        before = curve.machine.read()
        with _look_at_all(tensors, plan.mappings):
            timing = timer.timing(
                replay, curve.rule, lambda run: check_left(tensors, windows[run], AUDITED_BYTES)
            )
        after = curve.machine.read()
    with seconds.of("verify_s"):
        _check_timed(replay, tensors, windows, timing.last_run)
        verified = _check_last(curve, replay, tensors, windows)
    try:
        with seconds.of("ceiling_s"):
            measure_copy = curves.copying(curve, case, plan, read, written)
    finally:  # a byte that was written elsewhere is worse than a ceiling that cannot be measured
        with seconds.of("verify_s"):
            verified()
    with seconds.of("ceiling_s"):
        copy_us = measure_copy()
    return _timed(curve, case, plan, timing, (before, after), copy_us, seconds)


def _bind(curve: Curve, tensors: Tensors, plan: replay_plan.Plan) -> list[list[Call]]:
    """Bind the calls of each turn; two that write the same rows to the same slots are one."""
    walks = [plan.walk(turn) for turn in range(replay_plan.TURNS)]
    sets = [tensors.window(window) for window in range(plan.windows)]
    bound = {
        (mapping, window): curve.op.bind(curve.impl, sets[window], tensors.slot_mappings[mapping])
        for mapping, window in dict.fromkeys(chain(*walks))
    }
    return [[bound[pair] for pair in walk] for walk in walks]


def _renew(curve: Curve, tensors: Tensors, draw: int) -> None:
    """Change the data in place, and let an implementation follow that has declared that it must."""
    tensors.redraw(draw)
    if refresh := getattr(curve.impl, "refresh", None):
        refresh()


def _check_first(
    curve: Curve, replay: Replay, tensors: Tensors, plan: replay_plan.Plan, every_run: bool
) -> None:
    """Check the first run of the replay, with data that its calls were not bound with.

    Args:
        curve: The curve.
        replay: The calls.
        tensors: The case's.
        plan: Of the calls.
        every_run: Check the other runs as well, which find the rows of the one before in their slots; where
            they are timed, the audit does that.

    Raises:
        IncorrectResult: It wrote wrong bytes; where calls that are bound anew do not, the reason says that
            these kept what they saw.
    """
    try:
        for turn, run in enumerate(replay.runs if every_run else replay.runs[:1]):
            check_run(run, tensors, plan.last_windows(turn))
    except IncorrectResult as difference:
        if not tensors.unchanged() or not _is_right_bound_anew(curve, tensors, plan):
            raise
        raise IncorrectResult(f"{KEPT}: {difference}") from difference


def _is_right_bound_anew(curve: Curve, tensors: Tensors, plan: replay_plan.Plan) -> bool:
    """Return whether the calls of every turn are right with the data that they are bound with."""
    try:
        for turn, calls in enumerate(_bind(curve, tensors, plan)):
            check_run(mode.prepare("no_graph", calls), tensors, plan.last_windows(turn))
    except KvexpError:
        return False
    finally:
        poison(tensors.cache)
    return True


def _check_timed(replay: Replay, tensors: Tensors, windows: Sequence[Sequence[int]], last_run: int) -> None:
    """Check what the last sample left, and that the run whose turn it is next still writes.

    What runs that did nothing leave are rows of an earlier one, which may be those of the last sample's run.
    They are never those of both.
    """
    check_left(tensors, windows[last_run])
    replay.runs[1 - last_run]()
    check_left(tensors, windows[1 - last_run], AUDITED_BYTES)


def _check_last(
    curve: Curve, replay: Replay, tensors: Tensors, windows: Sequence[Sequence[int]]
) -> Callable[[], None]:
    """Check the last run, with keys, values and slots that have changed once more, and all of the memory.

    Returns:
        The end of it, which is to be waited for; see `law.check_untouched`.
    """
    restore(tensors, len(windows[-1]))
    _renew(curve, tensors, LAST)
    try:
        check_run(replay.runs[-1], tensors, windows[-1], others=True)
    except IncorrectResult as difference:
        raise IncorrectResult(
            f"right at first, but not once keys, values and slots changed in place: {difference}"
        ) from difference
    restore(tensors, len(windows[-1]))
    return check_untouched(tensors.cache)


@contextmanager
def _look_at_all(tensors: Tensors, mappings: int) -> Iterator[None]:
    """Scan the whole cache where the block raises: a stray write outranks what was raised.

    Raises:
        IncorrectResult: A byte was written elsewhere.
    """
    try:
        yield
    except IncorrectResult:
        raise
    except KvexpError:
        restore(tensors, mappings)
        check_untouched(tensors.cache)()
        raise


def copied(curve: Curve, case: Case) -> Measurement:
    """The point of impl=copy: the fastest copy of as many bytes; each shape is checked and, if asked, timed.

    Raises:
        Unsupported: There is no such copy here, or only a profiler is to see it.
        IncorrectResult: Other bytes arrived than were to be copied.
    """
    if case.timer == "profile":
        raise Unsupported("impl=copy is the ceiling and no implementation; timer=profile shows those alone")
    slots.check(case)
    seconds = Seconds()
    read, written = curve.op.bytes_moved(case, curve.item_bytes)
    plan = curves.plan(curve, case, read, written)
    shapes = 0
    found: list[tuple[float, Timing, tuple[GpuState | None, GpuState | None]]] = []
    unrolls = equal_copy.unrolls(case.device, written)
    for moves, replay in curves.copies(curve, case, plan, read, written, unrolls):
        shapes += 1
        with seconds.of("verify_s"):
            equal_copy.check(curve.memory, moves, replay)
        if not curves.timed(curve, case):
            continue
        with seconds.of("timing_s"):
            before = curve.machine.read()
            timing = timer.timing(replay, curve.rule)
            after = curve.machine.read()
        with seconds.of("verify_s"):
            equal_copy.check(curve.memory, moves, replay)
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
    plan: replay_plan.Plan,
    timing: Timing,
    looks: tuple[GpuState | None, GpuState | None],
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
        machine=make_columns(*looks),
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
    """Run the call once, outside any capture, and poison its slots again."""
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
