"""Track in a child process, which imports MLflow while other processes compose, import torch or draw.

`python -m kvexp.tracking.subprocess_tracker` is that process. Its standard input is one end of a pair of
sockets: it receives the names and arguments of methods, and answers each in turn until the other end closes.
"""

import atexit
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from kvexp import tracking
from kvexp.errors import TrackingError
from kvexp.process import frozen_imports, request_kill_on_parent_death, start_module
from kvexp.tracking import Tracker, TrackingSettings, artifacts

END_SECONDS = 5.0
"""Limit, at the end, for what the process still does."""
_CONNECT = "connect"


class SubprocessTracker:
    """The parent's side: starts the process at once, and is a Tracker once it is connected."""

    def __init__(self) -> None:
        self.uri = self.page = ""
        self._last_request = self._last_answer = 0
        self._pipe, theirs = Pipe()
        with theirs:
            # In its own session, for Ctrl-C may not interrupt what is being sent.
            self._process = start_module(__name__, theirs.fileno(), subprocess.DEVNULL)

    def connect(self, settings: TrackingSettings) -> None:
        """Have the process connect to the store, without waiting; `wait` waits."""
        self.uri = tracking.mask_passwords(settings.uri or "")
        with suppress(TrackingError):  # `wait` raises it
            self._send(_CONNECT, settings)

    def ready(self) -> bool:
        """Return whether the last request is answered; for a caller with one open request at a time."""
        try:
            return not self._awaits_answer or self._pipe.poll()
        except OSError:  # the process has ended, as `wait` tells
            return True

    def wait(self) -> Tracker:
        """Wait until the store is ready, and return this tracker.

        Raises:
            TrackingError: The store cannot be reached or made.
        """
        self.page = self._receive()
        return self

    def start_sweep(
        self, sweep_id: str, command: str, resumes: bool = False, name: str = "", began_ms: int | None = None
    ) -> None:
        """See `Tracker`, as for the methods below; an error is raised by a later call."""
        self.settle()
        self._send("start_sweep", sweep_id, command, resumes, name, began_ms)

    def log_curve(self, folder: Path, target: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`; returns while the curve is being sent, once the one before has arrived."""
        self._send("log_curve", folder, target, rows)  # first: an interrupt of the wait does not stop it
        before = self._last_request - 1
        if self._last_answer < before:
            self._receive(before)

    def settle(self) -> None:
        """See `Tracker`."""
        if self._awaits_answer:
            self._send("settle")  # an interrupt may have lost the last answer, but not this one's
            self._receive()

    def missing(self, sweep_id: str, folders: Sequence[Path]) -> list[Path]:
        """See `Tracker`."""
        return list(self._call("missing", sweep_id, folders))

    def end_sweep(self, status: str) -> None:
        """See `Tracker`."""
        self._call("end_sweep", status)

    def log_report(self, sweep_id: str, folder: Path) -> None:
        """See `Tracker`."""
        self._call("log_report", sweep_id, folder)

    def lacks_report(self, sweep_id: str) -> bool:
        """See `Tracker`."""
        return bool(self._call("lacks_report", sweep_id))

    def close(self) -> None:
        """Wait until the process has done what it was asked, at most `END_SECONDS`, and end it."""
        try:
            with suppress(OSError):
                self._pipe.close()
            if self._last_request:  # else it still imports, and does not read yet
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def _awaits_answer(self) -> bool:
        """Say whether an answer may still come."""
        return self._last_answer < self._last_request

    def _call(self, method: str, *arguments: Any) -> Any:
        """Send a request and return its answer; raise instead if an earlier request has failed."""
        self.settle()
        self._send(method, *arguments)
        return self._receive()

    def _send(self, method: str, *arguments: Any) -> None:
        self._last_request += 1
        try:
            self._pipe.send((self._last_request, method, arguments))
        except OSError as error:
            raise self._lose_process() from error

    def _receive(self, number: int | None = None) -> Any:
        """Return the answer to that request, by default the last; raise the error of any before it."""
        number = number or self._last_request
        while True:
            try:
                self._last_answer, answer = self._pipe.recv()
            except (EOFError, OSError, UnpicklingError) as error:
                raise self._lose_process() from error
            if isinstance(answer, TrackingError):
                raise answer
            if self._last_answer >= number:
                return answer

    def _lose_process(self) -> TrackingError:
        self._last_answer = self._last_request
        return TrackingError(f"the tracking store {self.uri} cannot be used: its process has ended", True)


def serve(pipe: Connection) -> None:
    """Answer every request until the other end is closed.

    Signals are ignored: they may reach all processes of a sweep, but the parent still reports its end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Else a resumed sweep could meet requests of its dead parent that are still being served.
    request_kill_on_parent_death()
    tracking.quiet()
    with frozen_imports(), suppress(ImportError):  # connecting raises it
        import kvexp.tracking.mlflow  # noqa: F401  # connecting imports it again
    # The parent's matplotlib warns already.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    artifacts.prepare()
    tracker: Tracker | None = None
    while True:
        try:
            number, method, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        answer: Any
        try:
            if method == _CONNECT:
                tracker = tracking.connect(*arguments)
                answer = tracker.page if tracker else ""
            else:
                answer = getattr(tracker, method)(*arguments)
        except TrackingError as error:
            answer = error
        with suppress(OSError):
            pipe.send((number, answer))


if __name__ == "__main__":
    to_parent = Connection(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what MLflow starts must not read the socket
    serve(to_parent)
    atexit._run_exitfuncs()
    os._exit(0)  # tearing down MLflow's modules takes a while
