"""A sweep's tracker whose first trouble is said once; from then on there is none, and the sweep goes on."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvexp.errors import TrackingError
from kvexp.results import sweep_dir as sweep_folder
from kvexp.tracking import Tracker, sync


class Guarded:
    """The tracker of one sweep, or of none.

    Nobody waits for a store that is still being made ready, or has a curve to store, but at the end and where
    it is said: until then curves are kept here.

    Args:
        connected: Gives the store when it is ready, or raises TrackingError; None tracks nothing.
        home: The sweep's folder.
        command: What was typed.
        resumes: Whether the sweep was begun before; what the store has missed of it is sent then.
        say: Told of trouble, in one sentence.
        again: The command that sends later what the store has missed.
        ready: Whether the store has answered all that it was asked; None where it always has.
    """

    def __init__(
        self,
        connected: Callable[[], Tracker] | None,
        home: Path,
        command: str,
        resumes: bool,
        say: Callable[[str], None],
        again: str = "kvexp sync",
        ready: Callable[[], bool] | None = None,
    ) -> None:
        self._connected = connected
        self._ready = ready
        self._home = home
        self._command = command
        self._resumes = resumes
        self._say = say
        self._later = f"its rows are on disk, and {again} sends them later"
        self._began_ms = int(time.time() * 1000)
        self._tracker: Tracker | None = None
        self._kept: list[tuple[Path, str, Sequence[Mapping[str, Any]]]] = []
        self._report: sync.Drawn | None = None

    def start(self) -> None:
        """The store is ready, the sweep has its run there, and the curves that were kept are on their way."""
        if self._connected:
            self._start(self._connected)
        while self._kept:
            self._send()

    def go_on(self) -> None:
        """`start`, as far as that waits for nothing."""
        while (self._connected or self._kept) and (self._ready is None or self._ready()):
            if self._connected:
                self._start(self._connected)
            else:
                self._send()

    def _start(self, connected: Callable[[], Tracker]) -> None:
        try:
            self._tracker = connected()
            self._connected = None  # what interrupts a wait leaves it, to be asked again at the end
            self._begin(self._tracker)
        except TrackingError as error:
            self._connected = None
            self._give_up(error)

    def _begin(self, tracker: Tracker) -> None:
        sweep_id = sweep_folder.id_of(self._home)
        missing = tracker.missing(sweep_id, sync.curves(self._home)) if self._resumes else []
        name = sweep_folder.name_of(self._home)
        tracker.start_sweep(sweep_id, self._command, self._resumes, name, self._began_ms)
        sync.catch_up(tracker, missing, self._say)

    def _send(self) -> None:
        folder, target, rows = self._kept.pop(0)
        self._tried(lambda tracker: tracker.log_curve(folder, target, rows))

    def log_curve(self, folder: Path, target: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """The curve is on its way to the store, or is kept until the store has time for it."""
        self._kept.append((folder, target, rows))
        self.go_on()

    def settle(self) -> None:
        """The sweep and its curves are in the store: nothing of that runs beside the caller."""
        self.start()
        self._tried(lambda tracker: tracker.settle())

    def draw_report(self) -> None:
        """The report that `send_report` sends is drawn; what is on its way to the store goes on meanwhile."""
        if self._tracker:
            self._report = sync.draw_report(self._home, self._say)

    def end(self, status: str) -> None:
        """The sweep's run has ended with this status."""
        self._tried(lambda tracker: tracker.end_sweep(status))

    def send_report(self) -> None:
        """The runs have the report, where one was drawn, and it is said where they are."""
        if self._tracker:
            self._say(f"tracked in {self._tracker.uri}")
            if self._tracker.page:
                self._say(self._tracker.page)
            if self._report:
                sync.send_drawn(self._tracker, self._home, self._report, self._say)
        elif self._connected:
            self._say(f"kvexp: the sweep ended before its tracking store was ready; {self._later}")

    def _tried(self, work: Callable[[Tracker], None]) -> None:
        """The tracker, if there still is one, has done the work, or is given up."""
        if self._tracker:
            try:
                work(self._tracker)
            except TrackingError as error:
                self._give_up(error)

    def _give_up(self, error: TrackingError) -> None:
        tracker, self._tracker = self._tracker, None
        self._say(f"kvexp: {error}; the sweep goes on untracked, {self._later}")
        if tracker and not error.unreachable:
            # Its run would stay open until the next start; a store that is away would only cost time again.
            with suppress(TrackingError):
                tracker.end_sweep("FAILED")
