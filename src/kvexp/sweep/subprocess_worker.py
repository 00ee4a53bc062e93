"""Who measures, as the parent sees it: a process that may crash or hang.

It is reused from curve to curve until it dies, so that a crash costs one curve. What is said over the pipe is
in `kvexp.bench.child`.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Any, Self

from kvexp.errors import ConfigError, Unsupported, WorkerDied
from kvexp.experiment import Experiment
from kvexp.gpu.lock import OnWait

CHILD = "kvexp.bench.child"
LAST_WORDS_BYTES = 4000
START_SECONDS = 300.0
"""Patience with the start of the process and the import of libraries, whatever a point may take."""
END_SECONDS = 10.0
"""Patience with a process that was told to end; one that a driver holds in the kernel is left behind."""

Point = tuple[dict[str, Any], Sequence[float]]
"""A row and its raw samples in microseconds."""


class Started:
    """A measuring process that imports its libraries; the `Worker` that gets it tells it the device."""

    def __init__(self) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            # Ctrl-C reaches the parent alone, which ends the child.
            start_new_session=True,
        )

    def end(self) -> None:
        """The process is being ended; it may take the system a while to get a GPU's memory back."""
        with contextlib.suppress(OSError):
            self.process.kill()

    def close(self) -> None:
        """The process has ended and its memory is free."""
        self.end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


class Worker:
    """The parent's side of one measuring process.

    Args:
        requested: The device.
        timeout_s: Seconds after which a point is given up; None waits for ever.
        waits: Told when another process measures on the GPU first.
        started: The process, where there is one already.
        coming: All curves that it may be sent.

    Attributes:
        requested: The device as it was asked for.
        device: The device as it was resolved, once `wait` was called; a missing one as it was asked for.
        environment: The machine's columns, once `wait` was called.
        refusal: Why the machine cannot measure on that device; empty when it can.
        impl_hash: The hash of the sources of the implementation that was opened last.
    """

    def __init__(
        self,
        requested: str,
        timeout_s: float | None = None,
        waits: OnWait = lambda _: None,
        started: Started | None = None,
        coming: Sequence[Experiment] = (),
    ) -> None:
        self.requested = requested
        self.device = ""
        self.environment: dict[str, Any] = {}
        self.refusal = ""
        self.impl_hash: str | None = None
        self._timeout_s = timeout_s
        self._waits = waits
        self._coming = coming
        self._heard = b""
        self._given_up = False
        self._started = started or Started()
        self._process, self._errors = self._started.process, self._started.errors
        with contextlib.suppress(WorkerDied):  # `wait` tells
            self._send(requested)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the process can take another experiment."""
        return not self._given_up and self._process.poll() is None

    @property
    def columns(self) -> dict[str, Any]:
        """What a row of this process says besides its case and its outcome."""
        return {**self.environment, "impl_hash": self.impl_hash}

    @property
    def left_behind(self) -> str | None:
        """The process in the words of `kvexp.gpu.lock`, where it was closed and nobody can end it."""
        return None if self._process.poll() is not None else f"process {self._process.pid}"

    def wait(self) -> None:
        """The process is ready: `device` and `environment` are known.

        Raises:
            Unsupported: The machine has no such device.
            WorkerDied: The process ended.
        """
        if not self.device:
            answer = self._receive(START_SECONDS, "the measuring process did not start")
            self.device, self.environment = answer["device"], answer["environment"]
            self.refusal = answer["refusal"]
        if self.refusal:
            raise Unsupported(self.refusal)

    def open(self, experiment: Experiment) -> None:
        """Send the process the curve, resolved for its device, and hear `impl_hash`.

        Raises:
            WorkerDied: The process ended.
        """
        self.impl_hash = None
        self._send(json.dumps([curve.to_json() for curve in (experiment, *self._coming)]))
        self._coming = ()
        self.impl_hash = self._receive(START_SECONDS, "the implementation was not found")["impl_hash"]

    def points(self, num_tokens: Sequence[int]) -> Iterator[Point]:
        """Yield the row and the raw samples of those points of the opened curve, as each is measured.

        The process sets up the curve when the first is asked for.

        Raises:
            ConfigError: The experiment is wrong whatever the machine.
            WorkerDied: The process ended before the curve did, or a point did not end in time.
        """
        self._send(json.dumps({"num_tokens": list(num_tokens), "timeout_s": self._timeout_s}))
        patience_s = self._timeout_s
        while True:
            answer = self._receive(patience_s, "the point did not end")
            match answer["event"]:
                case "waiting":
                    # To wait for another process's curve is no hang, however long that takes.
                    patience_s = None if answer["holder"] else self._timeout_s
                    self._waits(answer["holder"])
                case "asking" | "asked" as event:
                    # Each question has a limit of its own.
                    patience_s = None if event == "asking" else self._timeout_s
                case "point":
                    yield answer["row"], answer["samples_us"]
                    self._send("")
                case "config_error":
                    raise ConfigError(answer["message"])
                case "end":
                    self._given_up |= answer["ends"]
                    return

    def run(self, experiment: Experiment) -> Iterator[Point]:
        """Every point of the curve; see `open` and `points`."""
        self.open(experiment)
        yield from self.points(experiment.workload.num_tokens)

    def end(self) -> None:
        """The process is being ended; `close` waits until it has."""
        self._started.end()

    def close(self) -> None:
        """The process has ended and its memory is free."""
        self._given_up = True  # even where it cannot be ended, it hears nothing any more
        self._started.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin
        left = line.encode() + b"\n"
        try:
            while left:
                left = left[self._process.stdin.write(left) or 0 :]
        except OSError as error:
            raise self._died() from error

    def _receive(self, timeout_s: float | None, late: str) -> dict[str, Any]:
        """The next answer; a process that is silent for longer is ended with the words of `late`."""
        assert self._process.stdout
        until = None if timeout_s is None else time.monotonic() + timeout_s
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._heard:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([pipe], [], [], left)[0]:
                raise self._hung(f"{late} within {timeout_s:g} s, so its process was killed")
            heard = os.read(pipe, 1 << 20)
            if not heard:
                raise self._died()
            self._heard += heard
        line, _, self._heard = self._heard.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _hung(self, what: str) -> WorkerDied:
        self._given_up = True
        # It writes down where it is, and ends; a call that is stuck in a driver may ignore all but a kill.
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(END_SECONDS)
        return WorkerDied(what + self._last_words())

    def _died(self) -> WorkerDied:
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return self._hung("the measuring process closed its pipe and was killed")
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return WorkerDied(f"the measuring process {how}{self._last_words()}")

    def _last_words(self) -> str:
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - LAST_WORDS_BYTES))
        words = self._errors.read().decode(errors="replace").strip()
        return f"; its last words:\n{words}" if words else ""
