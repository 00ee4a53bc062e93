"""Measure in a child process that may crash or hang.

The process is reused from curve to curve until it dies, so that a crash costs one curve. `kvexp.bench.child`
is that process and describes the protocol.
"""

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Self

from kvexp.errors import ConfigError, Unsupported, WorkerDied
from kvexp.experiment import Experiment
from kvexp.gpu.lock import OnWait
from kvexp.host.plain_file import is_here_gone
from kvexp.host.process import END_SECONDS, START_SECONDS, LineChild

CHILD = "kvexp.bench.child"
LAST_WORDS_BYTES = 4000
SIGN_SECONDS = START_SECONDS + 2 * END_SECONDS
"""Limit for a child that waits, or asks another process: it says so again and again, and ends a late one."""

Point = tuple[dict[str, Any], Sequence[float]]
"""A row and its raw samples in microseconds."""


def start_child() -> LineChild:
    """Start a measuring process, which imports its libraries until a `Worker` sends it the device."""
    return LineChild(CHILD)


class Worker:
    """The parent's side of one measuring process.

    Args:
        requested: The device.
        timeout_s: Seconds after which a point is given up; None waits for ever.
        waits: Called when another process measures on the GPU first.
        child: The process, if it was started before.
        coming: All curves that it may be sent.
        visible: The GPUs that it sees, as CUDA_VISIBLE_DEVICES; empty for those that this process sees.

    Attributes:
        requested: The device as it was asked for.
        device: The device as it was resolved, once `wait` was called; a missing one as it was asked for.
        environment: The machine's columns, once `wait` was called.
        refusal: Why the machine cannot measure on that device; empty when it can.
        impl_hash: The hash of the sources of the implementation that was opened last.
        traceback: Of the error behind the point that `measure` yielded last; empty where there was none.
        is_host_sensitive: Whether host load can affect the times of the curve that was opened last.
    """

    def __init__(
        self,
        requested: str,
        timeout_s: float | None = None,
        waits: OnWait = lambda _: None,
        child: LineChild | None = None,
        coming: Sequence[Experiment] = (),
        visible: str = "",
    ) -> None:
        self.requested = requested
        self.device = ""
        self.environment: dict[str, Any] = {}
        self.refusal = ""
        self.impl_hash: str | None = None
        self.traceback = ""
        self.is_host_sensitive = True
        self._timeout_s = timeout_s
        self._waits = waits
        self._coming = coming
        self._given_up = False
        self._child = child or start_child()
        self._process = self._child.process
        with contextlib.suppress(WorkerDied):  # `wait` raises it
            self._send(f"{requested} {visible}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Say whether the process can take another experiment."""
        return not self._given_up and self._process.poll() is None

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of a row besides its case and its outcome."""
        return {**self.environment, "impl_hash": self.impl_hash}

    @property
    def left_behind(self) -> str | None:
        """The process, named as in `kvexp.gpu.lock`, if it was closed and cannot be ended."""
        return None if self._process.poll() is not None else f"process {self._process.pid}"

    def wait(self) -> None:
        """Wait until the process is ready: `device` and `environment` are known.

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
        """Send the process the curve, resolved for its device; receive `impl_hash` and `is_host_sensitive`.

        Raises:
            WorkerDied: The process ended.
        """
        self.impl_hash, self.is_host_sensitive = None, True
        self._send(json.dumps([curve.to_json() for curve in (experiment, *self._coming)]))
        self._coming = ()
        answer = self._receive(START_SECONDS, "the implementation was not found")
        self.impl_hash, self.is_host_sensitive = answer["impl_hash"], answer["is_host_sensitive"]

    def measure(self, num_tokens: Sequence[int]) -> Iterator[Point]:
        """Yield the row and the raw samples of those points of the opened curve, as each is measured.

        The process sets up the curve when the first is asked for.

        Raises:
            ConfigError: The experiment is wrong whatever the machine.
            WorkerDied: The process ended before the curve did, or a point did not end in time.
        """
        self._send(json.dumps({"num_tokens": list(num_tokens), "timeout_s": self._timeout_s}))
        limit_s = self._timeout_s
        while True:
            answer = self._receive(limit_s, "the point did not end")
            match answer["event"]:
                case "waiting":
                    # Waiting for another process's curve is no hang, however long it takes.
                    limit_s = SIGN_SECONDS if answer["holder"] else self._timeout_s
                    self._waits(answer["holder"])
                case "asking" | "asked" as event:
                    # Each question has a limit of its own.
                    limit_s = SIGN_SECONDS if event == "asking" else self._timeout_s
                case "point":
                    self.traceback = answer["traceback"]
                    yield answer["row"], answer["samples_us"]
                    self.traceback = ""
                    self._send("")
                case "config_error":
                    raise ConfigError(answer["message"])
                case "end":
                    self._given_up |= answer["ends"]
                    return

    def run(self, experiment: Experiment) -> Iterator[Point]:
        """Measure every point of the curve; see `open` and `measure`."""
        self.open(experiment)
        yield from self.measure(experiment.workload.num_tokens)

    def kill(self) -> None:
        """Kill the process without waiting; `close` waits."""
        self._child.kill()

    def close(self) -> None:
        """End the process and wait until its memory is free."""
        self._given_up = True  # also if it cannot be ended
        self._child.close()

    def _send(self, line: str) -> None:
        try:
            self._child.send(line)
        except TimeoutError:
            raise self._kill_hung("the measuring process reads nothing and was killed") from None
        except OSError as error:
            raise self._explain_death() from error

    def _receive(self, timeout_s: float | None, late: str) -> dict[str, Any]:
        """Wait for the next answer; end a process that is silent for longer, with the words of `late`."""
        try:
            return self._child.receive(timeout_s)
        except TimeoutError:
            raise self._kill_hung(f"{late} within {timeout_s:g} s, so its process was killed") from None
        except EOFError:
            raise self._explain_death() from None

    def _kill_hung(self, what: str) -> WorkerDied:
        self._given_up = True
        self._child.kill_hung()
        return WorkerDied(what + self._last_words())

    def _explain_death(self) -> WorkerDied:
        code = self._child.wait(END_SECONDS)
        if code is None:
            return self._kill_hung("the measuring process closed its pipe and was killed")
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        where = "the folder where kvexp was typed is gone; " if is_here_gone() else ""
        return WorkerDied(f"{where}the measuring process {how}{self._last_words()}")

    def _last_words(self) -> str:
        words = self._child.read_errors(LAST_WORDS_BYTES)
        return f"; its last words:\n{words}" if words else ""
