"""A store in a process of its own, which imports MLflow while others compose, import torch or draw.

`python -m kvexp.tracking.remote` is that process. Its standard input is one end of a pair of sockets: it is
sent the names and arguments of methods, and answers each in turn until the other end is closed.
"""

import atexit
import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from kvexp import tracking
from kvexp.errors import TrackingError
from kvexp.process import frozen_imports
from kvexp.tracking import Tracker, TrackingSettings, artifacts

END_SECONDS = 5.0
"""Patience, at the end, with an answer that nobody waits for any more."""
_CONNECT = "connect"
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class Remote:
    """The parent's side: a process that is started at once, and a Tracker when it is connected."""

    def __init__(self) -> None:
        self.uri = self.page = ""
        self._asked_last = self._answered_last = 0
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kvexp.tracking.subprocess_tracker"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                # Ctrl-C reaches the parent alone: what is being sent is sent whole.
                start_new_session=True,
            )

    def begin(self, settings: TrackingSettings) -> None:
        """The process connects to that store; see `connected`."""
        self.uri = tracking.mask_passwords(settings.uri or "")
        with suppress(TrackingError):  # `connected` tells
            self._ask(_CONNECT, settings)

    def ready(self) -> bool:
        """Whether there is an answer to what was asked last, or nothing was asked: then none is waited for.

        Only for who asks one thing after the other.
        """
        try:
            return not self._due or self._pipe.poll()
        except OSError:  # its process has ended, as `connected` tells
            return True

    def connected(self) -> Tracker:
        """This tracker, whose store is ready.

        Raises:
            TrackingError: The store cannot be reached or made.
        """
        self.page = self._answer()
        return self

    def start_sweep(
        self, sweep_id: str, command: str, resumes: bool = False, name: str = "", began_ms: int | None = None
    ) -> None:
        """See `Tracker`, as for the methods below; trouble is raised by one of them."""
        self.settle()
        self._ask("start_sweep", sweep_id, command, resumes, name, began_ms)

    def log_curve(self, folder: Path, target: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`; the curve is being sent when this returns, and the one before has arrived."""
        self._ask("log_curve", folder, target, rows)  # first: an interrupted wait leaves it on its way
        before = self._asked_last - 1
        if self._answered_last < before:
            self._answer(before)

    def settle(self) -> None:
        """See `Tracker`."""
        if self._due:
            self._ask("settle")  # an interrupt may have taken the last answer, but none takes this one
            self._answer()

    def missing(self, sweep_id: str, folders: Sequence[Path]) -> list[Path]:
        """See `Tracker`."""
        found: list[Path] = self._asked("missing", sweep_id, folders)
        return found

    def end_sweep(self, status: str) -> None:
        """See `Tracker`."""
        self._asked("end_sweep", status)

    def log_report(self, sweep_id: str, folder: Path) -> None:
        """See `Tracker`."""
        self._asked("log_report", sweep_id, folder)

    def lacks_report(self, sweep_id: str) -> bool:
        """See `Tracker`."""
        return bool(self._asked("lacks_report", sweep_id))

    def close(self) -> None:
        """The process has ended, once it has done what it was asked."""
        try:
            with suppress(OSError):
                self._pipe.close()
            if self._asked_last:  # else it imports, and hears nothing yet
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def _due(self) -> bool:
        """Whether an answer may be on its way."""
        return self._answered_last < self._asked_last

    def _asked(self, method: str, *arguments: Any) -> Any:
        """The answer; where trouble is on its way already that is raised, and nothing is asked."""
        self.settle()
        self._ask(method, *arguments)
        return self._answer()

    def _ask(self, method: str, *arguments: Any) -> None:
        self._asked_last += 1
        try:
            self._pipe.send((self._asked_last, method, arguments))
        except OSError as error:
            raise self._died() from error

    def _answer(self, number: int | None = None) -> Any:
        """The answer to that request, by default the last; trouble with those before comes first."""
        number = number or self._asked_last
        while True:
            try:
                self._answered_last, answer = self._pipe.recv()
            except (EOFError, OSError, UnpicklingError) as error:
                raise self._died() from error
            if isinstance(answer, TrackingError):
                raise answer
            if self._answered_last >= number:
                return answer

    def _died(self) -> TrackingError:
        self._answered_last = self._asked_last
        return TrackingError(f"the tracking store {self.uri} cannot be used: its process has ended", True)


def serve(pipe: Connection) -> None:
    """Everything that is asked is answered, until the other end is closed, whoever sends which signal.

    What ends a sweep may end all of its processes; the parent has its end to tell.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # A resumed sweep must not meet what its dead parent had asked for.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    tracking.quiet()
    with frozen_imports(), suppress(ImportError):  # connecting tells
        import kvexp.tracking.mlflow  # noqa: F401  # connecting asks for it by its name
    # What matplotlib has to say of this machine the parent hears from its own.
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
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # whatever MLflow starts reads nothing of it
    serve(to_parent)
    atexit._run_exitfuncs()
    os._exit(0)  # it takes MLflow's modules a while to be taken apart
