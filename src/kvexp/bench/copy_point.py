"""Measure the equal copy as a curve of its own (impl=copy)."""

import statistics as stats

from kvexp.bench import curve_setup, equal_copy
from kvexp.bench.curve_setup import Curve
from kvexp.bench.run_point import Seconds, make_measurement
from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.gpu.nvml import GpuState
from kvexp.measurement import Measurement
from kvexp.timer import Timing, time_replay


class Copy:
    """The equal copy in the place of an implementation. It writes no slots, so it has no op's method."""

    name = "copy"
    untimed = ""

    def __init__(self, device: str) -> None:
        self.device = device

    def measure_point(self, curve: Curve, case: Case) -> Measurement:
        """Check the copy of each unroll, time it if asked, take the fastest.

        Raises:
            Unsupported: There is no such copy here, or the timer runs implementations alone.
            IncorrectResult: The copied bytes are wrong.
        """
        if not curve.timer.runs_copy:
            raise Unsupported(
                f"impl=copy is an equal copy, not an implementation; timer={case.timer} runs those alone"
            )
        seconds = Seconds()
        read, written = curve.op.bytes_moved(case, curve.item_bytes)
        plan = curve.plan(case, read, written)
        copies = 0
        timed: list[tuple[float, Timing, tuple[GpuState | None, GpuState | None]]] = []
        unrolls = equal_copy.list_unrolls(curve.memory, written)
        for moves, replay in curve_setup.prepare_copies(curve, case, plan, read, written, unrolls):
            copies += 1
            with seconds.measure("verify_s"):
                equal_copy.check_copies(curve.memory, moves, replay)
            if curve.untimed:
                continue
            with seconds.measure("timing_s"):
                before = curve.machine.read()
                timing = time_replay(replay, curve.timer.criterion)
                after = curve.machine.read()
            with seconds.measure("verify_s"):
                equal_copy.check_copies(curve.memory, moves, replay)
            timed.append((stats.median(timing.samples_us), timing, (before, after)))
        if not copies:
            raise Unsupported(
                "impl=copy has no copy for this point: one writes at least 16 bytes and at most the cache, "
                "and on a CPU it reads no more than it writes"
            )
        if not timed:
            return Measurement(case, "verified", curve.untimed, seconds=seconds)
        copy_us, timing, looks = min(timed, key=lambda copy: copy[0])
        return make_measurement(curve, case, plan, timing, looks, copy_us, seconds)
