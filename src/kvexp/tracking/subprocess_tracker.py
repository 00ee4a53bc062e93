"""Track in a child process, which imports MLflow while other processes compose, import torch or draw.

`python -m kvexp.tracking.subprocess_tracker` is that process. Its standard input is one end of a pair of
sockets: it receives the names and arguments of methods, and answers each in turn until the other end closes.
On its standard output it writes a byte when it gets on. A store that drips, a network disk that hangs and a
process that is stopped are silent there: the parent gives up all of them alike.
"""

import atexit
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from kvexp import tracking
from kvexp.errors import KvexpError, TrackingError
from kvexp.host.addresses import mask_address
from kvexp.host.process import START_SECONDS, frozen_imports, request_kill_on_parent_death, start_module
from kvexp.results.provenance import Provenance
from kvexp.tracking import Tracker, TrackingSettings, artifacts

END_SECONDS = 5.0
"""Limit, at the end, for what the process still does."""
_CONNECT, _DOWNLOAD = "connect", "download_rows"
_SIGN_SECONDS = 1.0
"""The least time between two signs of life."""


class SubprocessTracker:
    """The parent's side: starts the process at once, and is a Tracker once it is connected.

    The process may be silent for `tracking.answer_seconds`, and take START_SECONDS for a request. Then it is
    killed, so that nothing is sent behind the back of whoever has given it up.
    """

    def __init__(self) -> None:
        self.uri = self.page = ""
        self.refused: list[str] = []
        self.asks_first = False
        self._silence_s = tracking.answer_seconds(os.environ)
        self._last_request = self._last_answer = 0
        self._pipe, theirs = Pipe()
        _limit(self._pipe, self._silence_s)
        with theirs:
            # In its own session, for Ctrl-C may not interrupt what is being sent.
            self._process = start_module(__name__, theirs.fileno(), subprocess.PIPE)
        assert self._process.stdout
        self._signs = self._process.stdout.fileno()
        os.set_blocking(self._signs, False)
        self._channels: list[Connection | int] = [self._pipe, self._signs]
        self._asked_at = self._heard_at = time.monotonic()

    def connect(self, settings: TrackingSettings) -> None:
        """Have the process connect to the store, without waiting; `wait` waits."""
        self.uri = mask_address(settings.uri or "")
        with suppress(TrackingError):  # `wait` raises it
            self._send(_CONNECT, settings)

    def ready(self, timeout_s: float = 0.0) -> bool:
        """Wait for the answer to the last request, at most so long, for a caller with one open at a time.

        Return whether it has come, or is not waited for any longer, as the next request will tell.
        """
        return not self._awaits_answer or self._wait_for_answer(timeout_s)

    def wait(self) -> Tracker:
        """Wait until the store is ready, and return this tracker.

        Raises:
            TrackingError: The store cannot be reached or made.
        """
        self.page = self._receive()
        return self

    def start_sweep(
        self,
        sweep_id: str,
        command: str,
        resumes: bool = False,
        name: str = "",
        began_ms: int | None = None,
        provenance: Provenance = tracking.UNKNOWN,
    ) -> None:
        """See `Tracker`, as for the methods below; an error is raised by a later call."""
        self.settle()
        self._send("start_sweep", sweep_id, command, resumes, name, began_ms, provenance)

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

    def download_rows(self, uri: str, name: str, folder: Path) -> bool:
        """See `kvexp.tracking.fetch`; this needs no connection before it."""
        self.uri = mask_address(uri)
        return bool(self._call(_DOWNLOAD, uri, name, folder))

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
            with suppress(subprocess.TimeoutExpired):  # the system may hold it, with a disk that hangs
                self._process.wait(END_SECONDS)
            if self._process.stdout:
                self._process.stdout.close()

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
        if not self._awaits_answer:
            self._asked_at = self._heard_at = time.monotonic()
        self._last_request += 1
        try:
            self._pipe.send((self._last_request, method, arguments))
        except OSError as error:
            raise self._lose_process() from error

    def _wait_for_answer(self, timeout_s: float = START_SECONDS) -> bool:
        """Wait until there is an answer, or the process has ended or is late; else return False in time."""
        until = time.monotonic() + timeout_s
        while not self._pipe.poll():
            with suppress(BlockingIOError):
                if os.read(self._signs, 1 << 16):
                    self._heard_at = time.monotonic()
                else:  # closed
                    self._channels = [self._pipe]
            left_s = min(until, self._late_at) - time.monotonic()
            if left_s > 0:
                wait(self._channels, left_s)
            # It gets a moment more: this process may have been stopped together with it.
            elif not (self._is_late and wait(self._channels, 2 * _SIGN_SECONDS)):
                return self._is_late
        return True

    @property
    def _late_at(self) -> float:
        return min(self._heard_at + self._silence_s, self._asked_at + START_SECONDS)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self._late_at

    def _receive(self, number: int | None = None) -> Any:
        """Return the answer to that request, by default the last; raise the error of any before it."""
        number = number or self._last_request
        while True:
            self._wait_for_answer()
            try:
                if not self._pipe.poll():
                    raise TimeoutError
                self._last_answer, answer, refused = self._pipe.recv()
            except (EOFError, OSError, UnpicklingError) as error:
                raise self._lose_process() from error
            self._asked_at = self._heard_at = time.monotonic()
            self.refused += refused
            if isinstance(answer, KvexpError):
                raise answer
            if self._last_answer >= number:
                return answer

    def _lose_process(self) -> TrackingError:
        why = f"it has not answered for {self._silence_s:g} s" if self._is_late else "its process has ended"
        self._process.kill()
        self._last_answer = self._last_request
        return TrackingError(f"the tracking store {self.uri} cannot be used: {why}", True)


def _limit(pipe: Connection, timeout_s: float) -> None:
    """Let a write to a process that reads nothing fail after that time, and a read of half an answer, too."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(timeout_s), 0))


def give_signs(out: int) -> None:
    """Write a byte when this process imports, opens, locks or sends something, at most one a second.

    A request to a server is such an event, and reading its answer is not.
    """
    last = 0.0

    def sign(*_: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SIGN_SECONDS:
            last = now
            with suppress(OSError):  # the parent has not read for long, or is gone
                os.write(out, b".")

    os.set_blocking(out, False)
    sys.addaudithook(sign)


def serve(pipe: Connection) -> None:
    """Answer every request until the other end is closed.

    Signals are ignored: they may reach all processes of a sweep, but the parent still reports its end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Else a resumed sweep could meet requests of its dead parent that are still being served.
    request_kill_on_parent_death()
    tracking.quiet()
    with frozen_imports(), suppress(Exception):  # connecting raises it
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
                tracker = _try_twice(partial(tracking.connect, *arguments), None)
                answer = tracker.page if tracker else ""
            elif method == _DOWNLOAD:
                answer = _try_twice(partial(_download_rows, *arguments), None)
            else:
                answer = _try_twice(partial(getattr(tracker, method), *arguments), tracker)
        except KvexpError as error:
            answer = error
        refused = list(tracker.refused) if tracker else []
        if tracker:
            tracker.refused.clear()
        with suppress(OSError):
            pipe.send((number, answer, refused))


def _try_twice(call: Callable[[], Any], tracker: Tracker | None) -> Any:
    """Call it, and once more where a server was busy or a connection broke, as an idle one does."""
    try:
        return call()
    except TrackingError as error:
        if not error.was_dropped:
            raise
    if tracker is None:
        return call()
    tracker.asks_first = True
    answer = call()
    tracker.asks_first = False
    return answer


def _download_rows(uri: str, name: str, folder: Path) -> bool:
    try:
        from kvexp.tracking import fetch  # here, since it imports MLflow
    except Exception as error:
        raise TrackingError(f"MLflow is not usable here ({error})") from error
    return fetch.download_rows(uri, name, folder)


if __name__ == "__main__":
    give_signs(1)
    to_parent = Connection(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what MLflow starts must not read the socket
    serve(to_parent)
    atexit._run_exitfuncs()
    os._exit(0)  # tearing down MLflow's modules takes a while
