"""Show the progress of a sweep.

Nothing is drawn while a kernel is timed, only when a point is done.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from kvexp.measurement import STATUSES
from kvexp.report import PrintableConsole
from kvexp.report.format import duration, number

_POINTS_BEFORE_ESTIMATE = 3
_SECONDS_BEFORE_ESTIMATE = 1.0


class Progress:
    """Shows how many points are done: one live line on a terminal, else a line for each finished curve.

    Args:
        total_points: Points of the whole sweep.
        console: Standard error by default, since the table goes to standard output.
        clock: Monotonic seconds.

    Attributes:
        done: How many points are done, whether in this sweep or before.
    """

    def __init__(
        self,
        total_points: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_points = total_points
        self.console = console or PrintableConsole(stderr=True)
        self.clock = clock
        self.done = 0
        self._start = clock()
        self._first_measured: float | None = None
        self._measured = 0
        self._curves: list[CurveProgress] = []
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        # auto_refresh off: rich starts no thread.
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if live else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        for curve in [*self._curves]:
            curve.finish()
        if self._live:
            self._live.stop()
        taken = duration(self.clock() - self._start)
        self._print(f"{self.done}/{self.total_points} points in {taken}")

    def start_curve(self, name: str) -> "CurveProgress":
        """Return the progress of a curve that begins; several may be open."""
        curve = CurveProgress(self, name)
        self._curves.append(curve)
        self.draw(name)
        return curve

    def count(self, points: int, measured: int = 0) -> None:
        """Count points that are done, and how many of them took the time that points take."""
        self.done += points
        if measured:
            # The first includes the start of the measuring process, so the estimate counts from its end.
            self._first_measured = self.clock() if self._first_measured is None else self._first_measured
            self._measured += measured

    def end_curve(self, curve: "CurveProgress", outcome: str) -> None:
        """Print what came of a curve, if anything did, unless a live line shows it."""
        self._curves.remove(curve)
        if outcome and not self._live:
            self._print(f"{self.done}/{self.total_points}  {curve.name}: {outcome}")

    def seconds_left(self) -> float | None:
        """Estimate the rest from the speed of the points so far; None while there are few."""
        if self._first_measured is None or self._measured < _POINTS_BEFORE_ESTIMATE:
            return None
        taken = self.clock() - self._first_measured
        if taken < _SECONDS_BEFORE_ESTIMATE or self.done >= self.total_points:
            return None
        return taken / (self._measured - 1) * (self.total_points - self.done)

    def draw(self, *about: str) -> None:
        """Draw the live line, if there is one, with what it is to say of a curve."""
        if self._live:
            parts = [f"{self.done}/{self.total_points}", *about, duration(self.clock() - self._start)]
            if (left := self.seconds_left()) is not None:
                parts.append(f"about {duration(left)} left")
            line = Text("  ".join(filter(None, parts)), no_wrap=True, overflow="ellipsis")
            self._live.update(line, refresh=True)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class CurveProgress:
    """The progress of one curve; `Progress.start_curve` makes it."""

    def __init__(self, sweep: Progress, name: str) -> None:
        self.name = name
        self._sweep = sweep
        self._begin = sweep.clock()
        self._outcomes: Counter[str] = Counter()
        self._already_done = 0
        self._last = ""

    def add_already_done(self, count: int) -> None:
        """Count points that are not measured, since they have a correct row."""
        self._already_done += count
        self._sweep.count(count)
        self._sweep.draw(self.name, self._last)

    def advance(self, row: Mapping[str, Any]) -> None:
        """Count one more point, whose outcome is `row`."""
        self._outcomes[row["status"]] += 1
        self._sweep.count(1, int(row["status"] != "skipped"))
        latency = row.get("latency_us")
        outcome = row["status"] if latency is None else f"{number(latency)} µs"
        self._last = f"num_tokens {row['num_tokens']}: {outcome}"
        self._sweep.draw(self.name, self._last)

    def finish(self) -> None:
        """End the curve, and say how its points came out."""
        counts = [f"{self._outcomes[status]} {status}" for status in STATUSES if self._outcomes[status]]
        counts += [f"{self._already_done} there already"] * bool(self._already_done)
        taken = duration(self._sweep.clock() - self._begin)
        self._sweep.end_curve(self, f"{', '.join(counts)} in {taken}" if counts else "")
