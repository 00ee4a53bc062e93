"""Track a sweep on a best-effort basis: report the first error once, then let the sweep go on untracked."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvexp.errors import TrackingError
from kvexp.results import sweep_dir as sweep_folder
from kvexp.tracking import Tracker, sync


class BestEffort:
    """The tracker of one sweep, which may be untracked.

    Curves are queued while the store is busy or not ready. Only `start`, `settle`, `end` and `send_report`
    wait for it.

    Args:
        connect: Returns the store when it is ready, or raises TrackingError; None tracks nothing.
        home: The sweep's folder.
        command: What was typed.
        resumes: Whether the sweep was started before; then the curves that the store lacks are sent first.
        say: Called with each error, as one sentence.
        sync_command: The command that sends later what the store lacks.
        ready: Whether the store has answered every request; None where it always has.
    """

    def __init__(
        self,
        connect: Callable[[], Tracker] | None,
        home: Path,
        command: str,
        resumes: bool,
        say: Callable[[str], None],
        sync_command: str = "kvexp sync",
        ready: Callable[[], bool] | None = None,
    ) -> None:
        self._connect = connect
        self._ready = ready
        self._home = home
        self._command = command
        self._resumes = resumes
        self._say = say
        self._later = f"its rows are on disk, and {sync_command} sends them later"
        self._began_ms = int(time.time() * 1000)
        self._tracker: Tracker | None = None
        self._queue: list[tuple[Path, str, Sequence[Mapping[str, Any]]]] = []
        self._report: sync.ReportFolder | None = None

    def start(self) -> None:
        """Wait for the store, start the sweep's run there, and send the queued curves."""
        if self._connect:
            self._start(self._connect)
        while self._queue:
            self._send_next()

    def poll(self) -> None:
        """Do as much of `start` as is possible without waiting."""
        while (self._connect or self._queue) and (self._ready is None or self._ready()):
            if self._connect:
                self._start(self._connect)
            else:
                self._send_next()

    def _start(self, connect: Callable[[], Tracker]) -> None:
        try:
            self._tracker = connect()
            self._connect = None  # not before: an interrupted wait is repeated at the end
            self._start_sweep(self._tracker)
        except TrackingError as error:
            self._connect = None
            self._give_up(error)

    def _start_sweep(self, tracker: Tracker) -> None:
        sweep_id = sweep_folder.id_of(self._home)
        missing = tracker.missing(sweep_id, sync.list_curves(self._home)) if self._resumes else []
        name = sweep_folder.name_of(self._home)
        tracker.start_sweep(sweep_id, self._command, self._resumes, name, self._began_ms)
        sync.send_curves(tracker, missing, self._say)

    def _send_next(self) -> None:
        folder, target, rows = self._queue.pop(0)
        self._try(lambda tracker: tracker.log_curve(folder, target, rows))

    def log_curve(self, folder: Path, target: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send the curve, or queue it until the store is ready."""
        self._queue.append((folder, target, rows))
        self.poll()

    def settle(self) -> None:
        """Wait until the sweep and its curves are in the store, so that nothing is sent meanwhile."""
        self.start()
        self._try(lambda tracker: tracker.settle())

    def draw_report(self) -> None:
        """Draw the report for `send_report`, while curves are still being sent."""
        if self._tracker:
            self._report = sync.draw_report(self._home, self._say)

    def end(self, status: str) -> None:
        """End the sweep's run with this status."""
        self._try(lambda tracker: tracker.end_sweep(status))

    def send_report(self) -> None:
        """Send the report, if one was drawn, and print where the runs are."""
        if self._tracker:
            self._say(f"tracked in {self._tracker.uri}")
            if self._tracker.page:
                self._say(self._tracker.page)
            if self._report:
                sync.send_report(self._tracker, self._home, self._report, self._say)
        elif self._connect:
            self._say(f"kvexp: the sweep ended before its tracking store was ready; {self._later}")

    def _try(self, request: Callable[[Tracker], None]) -> None:
        """Make a request of the tracker, if there still is one; give it up if that fails."""
        if self._tracker:
            try:
                request(self._tracker)
            except TrackingError as error:
                self._give_up(error)

    def _give_up(self, error: TrackingError) -> None:
        tracker, self._tracker = self._tracker, None
        self._say(f"kvexp: {error}; the sweep goes on untracked, {self._later}")
        if tracker and not error.unreachable:
            # Else its run stays open until the next start. A store that is down is not asked again.
            with suppress(TrackingError):
                tracker.end_sweep("FAILED")
