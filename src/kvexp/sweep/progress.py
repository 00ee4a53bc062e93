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
        self._clock = clock
        self._start = self._curve_start = clock()
        self._first_measured: float | None = None
        self._measured = 0
        self.done = 0
        self._already_done = 0
        self._label = ""
        self._last = ""
        self._outcomes: Counter[str] = Counter()
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        # auto_refresh off: rich starts no thread.
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if live else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish_curve()
        if self._live:
            self._live.stop()
        taken = duration(self._clock() - self._start)
        self._print(f"{self.done}/{self.total_points} points in {taken}")

    def add_already_done(self, count: int) -> None:
        """Count points of the curve that are not measured, since they have a correct row."""
        self.done += count
        self._already_done += count
        self._draw()

    def start_curve(self, label: str) -> None:
        """Finish the last curve; the next points belong to the curve `label`."""
        self._finish_curve()
        self._label, self._last = label, ""
        self._curve_start = self._clock()
        self._draw()

    def advance(self, row: Mapping[str, Any]) -> None:
        """Count one more point, whose outcome is `row`."""
        now = self._clock()
        self.done += 1
        self._outcomes[row["status"]] += 1
        if row["status"] != "skipped":
            # The first includes the start of the measuring process, so the estimate counts from its end.
            self._first_measured = now if self._first_measured is None else self._first_measured
            self._measured += 1
        latency = row.get("latency_us")
        outcome = row["status"] if latency is None else f"{number(latency)} µs"
        self._last = f"num_tokens {row['num_tokens']}: {outcome}"
        self._draw()

    def seconds_left(self) -> float | None:
        """Estimate the rest from the speed of the points so far; None while there are few."""
        if self._first_measured is None or self._measured < _POINTS_BEFORE_ESTIMATE:
            return None
        taken = self._clock() - self._first_measured
        if taken < _SECONDS_BEFORE_ESTIMATE or self.done >= self.total_points:
            return None
        return taken / (self._measured - 1) * (self.total_points - self.done)

    def _line(self) -> str:
        parts = [f"{self.done}/{self.total_points}", self._label, self._last]
        parts.append(duration(self._clock() - self._start))
        if (left := self.seconds_left()) is not None:
            parts.append(f"about {duration(left)} left")
        return "  ".join(part for part in parts if part)

    def _draw(self) -> None:
        if self._live:
            line = Text(self._line(), no_wrap=True, overflow="ellipsis")
            self._live.update(line, refresh=True)

    def _finish_curve(self) -> None:
        if (self._outcomes or self._already_done) and not self._live:
            counts = ", ".join(f"{self._outcomes[s]} {s}" for s in STATUSES if self._outcomes[s])
            if self._already_done:
                counts += ", " * bool(counts) + f"{self._already_done} there already"
            taken = duration(self._clock() - self._curve_start)
            self._print(f"{self.done}/{self.total_points}  {self._label}: {counts} in {taken}")
        self._outcomes.clear()
        self._already_done = 0

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
