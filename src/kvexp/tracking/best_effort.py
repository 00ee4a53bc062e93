"""Track a sweep on a best-effort basis: report the first error once, then let the sweep go on untracked.

The sweep measures first and is tracked later: before its last curve is measured it does not wait long for its
store.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvexp.errors import TrackingError
from kvexp.host.plain_file import find_gone
from kvexp.results import sweep_dir as sweep_folder
from kvexp.tracking import Tracker, sync

PATIENCE_SECONDS = 15.0
"""Limit of one wait before a curve."""


@dataclass
class BestEffort:
    """The tracker of one sweep, which may be untracked.

    Curves are queued while the store is busy or not ready. `start`, `end` and `send_report` wait for it, and
    `settle` does so for a while.

    Attributes:
        connect: Returns the store when it is ready, or raises TrackingError; None tracks nothing.
        home: The sweep's folder.
        command: What was typed.
        resumes: Whether the sweep was started before; then the curves that the store lacks are sent last.
        say: Called with each error, as one sentence.
        sync_command: The command that sends later what the store lacks.
        ready: Whether the store answers every request within so many seconds.
    """

    connect: Callable[[], Tracker] | None
    home: Path
    command: str
    resumes: bool
    say: Callable[[str], None]
    sync_command: str = "kvexp sync"
    ready: Callable[[float], bool] = lambda _: True
    _tracker: Tracker | None = field(default=None, init=False)
    _queue: list[tuple[Path, str, Sequence[Mapping[str, Any]]]] = field(default_factory=list, init=False)
    _is_slow: bool = field(default=False, init=False)
    _report: sync.ReportFolder | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._began_ms = int(time.time() * 1000)
        self._earlier = sync.list_curves(self.home) if self.resumes else []

    def start(self) -> None:
        """Wait for the store, start the sweep's run there, and send the queued curves and those of before."""
        while self.connect or self._queue:
            self._do_next()
        earlier, self._earlier = self._earlier, []
        if earlier:
            self._try(lambda tracker: self._send_missing(tracker, earlier))

    def poll(self) -> None:
        """Do as much of `start` as is possible without waiting; nothing once `settle` has waited in vain."""
        if not self._is_slow:
            self._advance(0.0)

    def _advance(self, limit_s: float) -> bool:
        """Do as much of `start` as is possible in that time; return whether the store has answered it all."""
        until = time.monotonic() + limit_s
        while self.ready(max(0.0, until - time.monotonic())):
            if not (self.connect or self._queue):
                return True
            self._do_next()
        return False

    def _do_next(self) -> None:
        if self.connect:
            self._start(self.connect)
        else:
            folder, target, rows = self._queue.pop(0)
            self._try(lambda tracker: tracker.log_curve(folder, target, rows))

    def _start(self, connect: Callable[[], Tracker]) -> None:
        try:
            self._tracker = connect()
            self.connect = None  # not before: an interrupted wait is repeated at the end
            self._start_sweep(self._tracker)
        except TrackingError as error:
            self.connect = None
            self._give_up(error)

    def _start_sweep(self, tracker: Tracker) -> None:
        sweep_id, name = sweep_folder.id_of(self.home), sweep_folder.name_of(self.home)
        provenance = sweep_folder.read_provenance(self.home)
        tracker.start_sweep(sweep_id, self.command, self.resumes, name, self._began_ms, provenance)

    def _send_missing(self, tracker: Tracker, earlier: Sequence[Path]) -> None:
        missing = tracker.missing(sweep_folder.id_of(self.home), earlier)
        sync.send_curves(tracker, missing, self.say)

    def log_curve(self, folder: Path, target: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send the curve, or queue it until the store is ready."""
        self._queue.append((folder, target, rows))
        self.poll()

    def settle(self) -> None:
        """Wait until the sweep and its curves are in the store, so that nothing is sent meanwhile.

        A store for which PATIENCE_SECONDS are not enough is sent nothing more before the end.
        """
        if not self._is_slow:
            self._is_slow = not self._advance(PATIENCE_SECONDS)
            if not self._is_slow:
                self._try(lambda tracker: tracker.settle())

    def draw_report(self) -> None:
        """Draw the report for `send_report`, while curves are still being sent."""
        if self._tracker and sync.list_curves(self.home):
            self._report = sync.draw_report(self.home, self.say)

    def end(self, status: str) -> None:
        """End the sweep's run with this status."""
        self._try(lambda tracker: tracker.end_sweep(status))

    def send_report(self) -> None:
        """Send the report, if one was drawn, and print where the runs are."""
        if self._tracker:
            self.say(f"tracked in {self._tracker.uri}")
            if self._tracker.page:
                self.say(self._tracker.page)
            if self._report:
                sync.send_report(self._tracker, self.home, self._report, self.say)
        elif self.connect:
            self.say(f"kvexp: the sweep ended before its tracking store was ready; {self._describe_rows()}")

    def _try(self, request: Callable[[Tracker], None]) -> None:
        """Make a request of the tracker, if there still is one; give it up if that fails."""
        if tracker := self._tracker:
            try:
                request(tracker)
            except TrackingError as error:
                self._give_up(error)
            while tracker.refused:
                self.say(f"kvexp: left out: {tracker.refused.pop(0)}")

    def _describe_rows(self) -> str:
        if gone := find_gone(self.home):
            return f"and its rows are lost, since {gone} is gone"
        return f"its rows are on disk, and {self.sync_command} sends them later"

    def _give_up(self, error: TrackingError) -> None:
        tracker, self._tracker = self._tracker, None
        self.say(f"kvexp: {error}; the sweep goes on untracked, {self._describe_rows()}")
        if tracker and not error.unreachable:
            # Else its run stays open until the next start. A store that is down is not asked again.
            with suppress(TrackingError):
                tracker.end_sweep("FAILED")
