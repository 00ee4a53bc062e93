"""Measure one point of a curve: verify its calls, then time the same calls.

build the case's tensors -> bind the calls -> prepare a replay -> change the data in place -> verify the
replay -> time the same replay, one sample of it audited -> change the data again, verify again -> time a copy
of equal bytes -> Measurement
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch

from kvexp import timer
from kvexp.bench import curve_setup, mode
from kvexp.bench.curve_setup import Curve
from kvexp.bench.verify import check_run, check_timed_slots, check_untouched, restore
from kvexp.case import Case
from kvexp.column import columns_of
from kvexp.errors import IncorrectResult, KvexpError, Unsupported
from kvexp.gpu import persisting_l2, scan
from kvexp.gpu.nvml import GpuState, make_columns
from kvexp.measurement import Measurement, Statistics
from kvexp.op import Call
from kvexp.statistics import summarise
from kvexp.timer import Timing, replay_plan
from kvexp.timer.replay import Replay
from kvexp.workload import LAST, TIMED, Tensors

STALE = "the call keeps what it saw when it was bound, and writes that instead of what is there when it runs"
"""Reason of a call that is right only as long as keys, values and slots stay what they were."""

SETS_ASIDE = (
    "each call sets a part of the L2 aside for persisting lines, so its slots cannot be cold; "
    "set it aside once, when the call is bound"
)
"""Reason of a call that does again what was undone before it was timed."""

AUDITED_BYTES = 128 << 20
"""Bytes of rows that an audit checks, in mappings drawn at random: all would take several samples' time."""

MIN_EMPTY_KERNELS = 0.5
"""No call takes less than this many times an empty kernel's time, whatever the noise of both."""


class Seconds(dict[str, float]):
    """Count the seconds that each part of a point takes."""

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the block's time to the part."""
        begin = time.perf_counter()
        yield
        self[part] = self.get(part, 0.0) + time.perf_counter() - begin


def measure_point(curve: Curve, case: Case) -> Measurement:
    """Verify the point and, where it can be, time it.

    Raises:
        Unsupported: The point cannot be done here, or not be timed with slots that are cold.
        IncorrectResult: The calls wrote wrong bytes.
    """
    seconds = Seconds()
    read, written = curve.op.bytes_moved(case, curve.item_bytes)
    plan = curve.plan(case, read, written)
    with seconds.measure("setup_s"):
        is_cold = plan.inputs_state == "cold"
        tensors = curve.memory.build(case, plan.mappings, plan.windows, is_cold)
        turns = _bind_calls(curve, tensors, plan)
        if case.mode == "cudagraph":
            _warm_up(turns[0][0], tensors)
        replay = curve_setup.make_replay(curve, case, turns, plan)
        windows = [plan.last_windows(turn) for turn in range(replay_plan.TURNS)]
    with seconds.measure("verify_s"):
        # The calls were bound and captured with other data than they are to write.
        _renew_data(curve, tensors, TIMED)
        _check_first_run(curve, replay, tensors, plan, every_run=bool(curve.untimed))
    if curve.untimed:
        curve.timer.run_untimed(turns[0], f"kvexp {case.num_tokens}")
        with seconds.measure("verify_s"):
            _check_last_run(curve, replay, tensors, windows)()
        return Measurement(case, "verified", curve.untimed, seconds=seconds)
    with seconds.measure("timing_s"):
        device = torch.device(case.device)
        persisting_bytes = max(curve.persisting_bytes, persisting_l2.end_set_aside(device))
        before = curve.machine.read()
        with _scan_on_error(tensors, plan.mappings):
            timing = timer.time_replay(
                replay,
                curve.timer.criterion,
                lambda run: check_timed_slots(tensors, windows[run], AUDITED_BYTES),
            )
        after = curve.machine.read()
        if persisting_l2.end_set_aside(device):
            raise Unsupported(SETS_ASIDE)
    with seconds.measure("verify_s"):
        _check_timed_runs(replay, tensors, windows, timing.last_run)
        finish_scan = _check_last_run(curve, replay, tensors, windows)
    try:
        with seconds.measure("ceiling_s"):
            measure_copy = curve_setup.prepare_copy(curve, case, plan, read, written)
    finally:  # a stray write outranks a copy that cannot be prepared
        with seconds.measure("verify_s"):
            finish_scan()
    with seconds.measure("ceiling_s"):
        copy_us = measure_copy()
    pieces, piece_bytes = curve.op.count_pieces(case, curve.layout, curve.item_bytes) or (None, None)
    measured = make_measurement(curve, case, plan, timing, (before, after), copy_us, seconds)
    measured = replace(measured, pieces=pieces, piece_bytes=piece_bytes)
    return measured if curve.l2_bytes is None else replace(measured, l2_persisting_bytes=persisting_bytes)


def _bind_calls(curve: Curve, tensors: Tensors, plan: replay_plan.Plan) -> list[list[Call]]:
    """Bind the calls of each turn; those that write the same rows to the same slots are one call."""
    walks = [plan.walk(turn) for turn in range(replay_plan.TURNS)]
    sets = [tensors.window(window) for window in range(plan.windows)]
    bound = {
        (mapping, window): curve.op.bind(curve.impl, sets[window], tensors.places[mapping])
        for mapping, window in dict.fromkeys(chain(*walks))
    }
    return [[bound[pair] for pair in walk] for walk in walks]


def _renew_data(curve: Curve, tensors: Tensors, draw: int) -> None:
    """Change the data in place, and call `refresh()` of an implementation that has declared it."""
    tensors.redraw(draw)
    if refresh := getattr(curve.impl, "refresh", None):
        refresh()


def _check_first_run(
    curve: Curve, replay: Replay, tensors: Tensors, plan: replay_plan.Plan, every_run: bool
) -> None:
    """Check the first run of the replay, with other data than its calls were bound with.

    With `every_run` check the other runs as well, which find the rows of the one before in their slots. In a
    timed replay the audit does that.

    Raises:
        IncorrectResult: It wrote wrong bytes. The reason begins with STALE where newly bound calls are right.
    """
    try:
        for turn, run in enumerate(replay.runs if every_run else replay.runs[:1]):
            check_run(run, tensors, plan.last_windows(turn))
    except IncorrectResult as difference:
        if not tensors.unchanged() or not _is_right_when_bound_anew(curve, tensors, plan):
            raise
        raise IncorrectResult(f"{STALE}: {difference}") from difference


def _is_right_when_bound_anew(curve: Curve, tensors: Tensors, plan: replay_plan.Plan) -> bool:
    """Bind the calls again; return whether every turn is right with the data of that moment."""
    try:
        for turn, calls in enumerate(_bind_calls(curve, tensors, plan)):
            check_run(mode.prepare("no_graph", calls), tensors, plan.last_windows(turn))
    except KvexpError:
        return False
    finally:
        scan.poison(tensors.memory.storage)
    return True


def _check_timed_runs(
    replay: Replay, tensors: Tensors, windows: Sequence[Sequence[int]], last_run: int
) -> None:
    """Check what the last sample left, then that the run whose turn is next still writes.

    Runs that do nothing leave the rows of an earlier run in the slots, which are right for one of the two.
    """
    check_timed_slots(tensors, windows[last_run])
    replay.runs[1 - last_run]()
    check_timed_slots(tensors, windows[1 - last_run], AUDITED_BYTES)


def _check_last_run(
    curve: Curve, replay: Replay, tensors: Tensors, windows: Sequence[Sequence[int]]
) -> Callable[[], None]:
    """Check the last run, its inputs changed once more; return what waits for a scan of the whole cache."""
    restore(tensors, len(windows[-1]))
    _renew_data(curve, tensors, LAST)
    try:
        check_run(replay.runs[-1], tensors, windows[-1], others=True)
    except IncorrectResult as difference:
        raise IncorrectResult(
            f"right at first, but not once its inputs changed in place: {difference}"
        ) from difference
    restore(tensors, len(windows[-1]))
    return check_untouched(tensors.memory.storage)


@contextmanager
def _scan_on_error(tensors: Tensors, mappings: int) -> Iterator[None]:
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
        check_untouched(tensors.memory.storage)()
        raise


def make_measurement(
    curve: Curve,
    case: Case,
    plan: replay_plan.Plan,
    timing: Timing,
    looks: tuple[GpuState | None, GpuState | None],
    copy_us: float | None,
    seconds: dict[str, float],
) -> Measurement:
    """Make the measurement of a timed point; `looks` are the GPU's states before and after its samples.

    Raises:
        KvexpError: The samples are too short to be the call's.
    """
    return Measurement(
        case=case,
        status="ok",
        statistics=_summarise(timing, curve.empty_kernel_us),
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


def _warm_up(call: Call, tensors: Tensors) -> None:
    """Run the call once, outside any capture, and poison its slots again."""
    call()
    torch.cuda.synchronize()
    restore(tensors, 1)


def _summarise(timing: Timing, empty_kernel_us: float | None) -> Statistics:
    """Summarise the samples.

    Raises:
        KvexpError: They are too short to be the call's, which then runs on another stream than the timed one.
    """
    statistics = summarise(timing.samples_us)
    if any(column.find_fault(getattr(statistics, name)) for name, column in columns_of(Statistics).items()):
        raise KvexpError("the latency is below what the timer resolves")
    if empty_kernel_us and statistics.latency_us < MIN_EMPTY_KERNELS * empty_kernel_us:
        raise KvexpError(
            f"a call takes {statistics.latency_us:.3g} us and an empty kernel {empty_kernel_us:.3g}, "
            "so it does not run on torch's current stream, which is what is timed"
        )
    return statistics
