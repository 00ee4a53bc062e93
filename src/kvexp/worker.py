"""One measuring process per device, reused until it dies, so that a crash costs one curve.

Parent and child speak JSON lines. The child says `ready`, with its device and environment, and ends if
the machine lacks the device. Then, for each experiment it is sent, it says `point` for each point and `end`.
After each `point` it waits for the parent's word to go on, so that nothing that the parent does with a row
runs beside a measurement. The child ends when its pipe closes.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any, Self

from kvexp.errors import ConfigError, Unsupported, WorkerDied
from kvexp.experiment import Experiment

LAST_WORDS_BYTES = 2000
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


class Worker:
    """The parent's side of one measuring process.

    Attributes:
        requested: The device as it was asked for.
        device: The device as it was resolved, once `wait` was called; a missing one as it was asked for.
        environment: The machine's columns, once `wait` was called.
        refusal: Why the machine cannot measure on that device; empty when it can.
    """

    def __init__(self, requested: str) -> None:
        self.requested = requested
        self.device = ""
        self.environment: dict[str, Any] = {}
        self.refusal = ""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvexp.worker", requested],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # Ctrl-C reaches the parent alone, which ends the child.
            start_new_session=True,
        )

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
        return self._process.poll() is None

    def wait(self) -> None:
        """The process is ready: `device` and `environment` are known.

        Raises:
            Unsupported: The machine has no such device.
            WorkerDied: The process ended.
        """
        if not self.device:
            answer = self._receive()
            self.device, self.environment = answer["device"], answer["environment"]
            self.refusal = answer["refusal"]
        if self.refusal:
            raise Unsupported(self.refusal)

    def run(self, experiment: Experiment) -> Iterator[tuple[dict[str, Any], list[float]]]:
        """The row and the raw samples of each point, as each is measured.

        Raises:
            ConfigError: The experiment is wrong whatever the machine.
            WorkerDied: The process ended before the curve did.
        """
        self._send(experiment.to_json())
        while True:
            answer = self._receive()
            match answer["event"]:
                case "point":
                    yield answer["row"], answer["samples_us"]
                    self._send("")
                case "config_error":
                    raise ConfigError(answer["message"])
                case "end":
                    return

    def close(self) -> None:
        """The process has ended and its memory is free."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._died() from error

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self) -> WorkerDied:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - LAST_WORDS_BYTES))
        words = self._errors.read().decode(errors="replace").strip()
        return WorkerDied(f"the measuring process {how}" + (f"; its last words:\n{words}" * bool(words)))


def _child(requested: str) -> None:
    """The child's side: answers experiments until its input closes."""
    _end_with_parent()
    # What libraries print must not come between the lines of the protocol.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from kvexp import environment

    try:
        device = environment.resolve_device(requested)
    except Unsupported as refusal:
        columns = environment.read(None)
        _say(out, event="ready", device=requested, environment=columns, refusal=str(refusal))
        return
    if device == "cpu":
        # Before any kernel's module is imported: Triton reads it when it decorates.
        os.environ["TRITON_INTERPRET"] = "1"
    columns = environment.read(device)
    _say(out, event="ready", device=device, environment=columns, refusal="")
    for line in sys.stdin:
        _answer(out, Experiment.from_json(line), columns)


def _end_with_parent() -> None:
    """On Linux the kernel ends this process when its parent is gone, even in the middle of a measurement."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(out: IO[str], experiment: Experiment, columns: dict[str, Any]) -> None:
    from kvexp import pipeline

    try:
        for measurement in pipeline.run(experiment, columns):
            _say(out, event="point", row=measurement.row(), samples_us=measurement.samples_us)
            if not sys.stdin.readline():
                # The parent is gone: nobody is left to measure for.
                sys.exit()
            if measurement.status == "failed" and experiment.device != "cpu":
                _end_if_poisoned()
    except ConfigError as error:
        _say(out, event="config_error", message=str(error))
    else:
        _say(out, event="end")


def _end_if_poisoned() -> None:
    """A CUDA error that poisons the process ends it: each later call would fail with the first's error."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"CUDA is unusable after: {error}", file=sys.stderr)  # noqa: T201  # the last words
        sys.stderr.flush()
        os._exit(1)


def _say(out: IO[str], **answer: Any) -> None:
    out.write(json.dumps(answer, allow_nan=False) + "\n")
    out.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        _child(sys.argv[1])
