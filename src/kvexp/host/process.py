"""Start child processes that die with their parent, and exempt large imports from garbage collection."""

import contextlib
import ctypes
import faulthandler
import gc
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

START_SECONDS = 300.0
"""Limit for the start of a child and its import of libraries, whatever its work may take."""
END_SECONDS = 10.0
"""Limit for the end of a killed child; one that a driver holds in the kernel is left behind."""
LOOK_SECONDS = 1.0
"""Longest wait in one call of the system: a signal that comes just before it is seen after it."""
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
OOM_SCORE_ADJ = "500"
"""Of -1000 to 1000: when the host runs out of memory, the kernel ends this process and not the parent."""


def start_module(
    module: str, stdin: int, stdout: int, stderr: IO[bytes] | None = None, own_session: bool = True
) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE`, by default in its own session, so that Ctrl-C does not reach it."""
    command = [sys.executable, "-m", module]
    return subprocess.Popen(
        command, bufsize=0, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=own_session
    )


def wait_for_end(process: subprocess.Popen[bytes]) -> int:
    """Wait until the process has ended, and return its exit code; a signal is seen meanwhile."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(LOOK_SECONDS)


def ask_git(*words: str | Path) -> bytes | None:
    """Return what git prints; None where it fails or is not installed."""
    # Git sets GIT_DIR in a hook, and it may name another repository than the one that is meant.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(["git", *words], capture_output=True, check=True, env=environ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


class LineChild:
    """A child process that is sent lines and answers in lines of JSON; its stderr goes to a temporary file.

    See `start_module` for the arguments. The attribute `process` is the child.
    """

    def __init__(self, module: str, own_session: bool = True) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = start_module(module, subprocess.PIPE, subprocess.PIPE, self._errors, own_session)
        self._received = b""

    def send(self, line: str) -> None:
        """Send a line.

        Raises:
            TimeoutError: The child reads nothing, for START_SECONDS in all.
            OSError: It has ended.
        """
        assert self.process.stdin
        until = time.monotonic() + START_SECONDS
        pipe, unsent = self.process.stdin.fileno(), line.encode() + b"\n"
        while unsent:
            if time.monotonic() > until:
                raise TimeoutError
            if select.select([], [pipe], [], LOOK_SECONDS)[1]:
                # A pipe that is ready takes so much without waiting.
                unsent = unsent[os.write(pipe, unsent[: select.PIPE_BUF]) :]

    def receive(self, timeout_s: float | None) -> dict[str, Any]:
        """Wait for the next answer; None, which only a user may choose, waits for ever.

        Raises:
            TimeoutError: None came in that time.
            EOFError: The child has closed its stdout.
        """
        assert self.process.stdout
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        pipe = self.process.stdout.fileno()
        while b"\n" not in self._received:
            left_s = max(0.0, min(LOOK_SECONDS, until - time.monotonic()))
            if not select.select([pipe], [], [], left_s)[0]:
                if time.monotonic() < until:
                    continue
                raise TimeoutError
            chunk = os.read(pipe, 1 << 20)
            if not chunk:
                raise EOFError
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def read_errors(self, last_bytes: int = sys.maxsize) -> str:
        """Read the end of what the child wrote to stderr."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - last_bytes))
        return self._errors.read().decode(errors="replace").strip()

    def wait(self, limit_s: float) -> int | None:
        """Wait until the child has ended, and return its exit code; None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(limit_s)
        return self.process.poll()

    def kill(self) -> None:
        """Kill the child without waiting: the system may need a while to free a GPU's memory."""
        with contextlib.suppress(OSError):
            self.process.kill()

    def kill_hung(self) -> None:
        """Kill a child that hangs, after it had a second to write on stderr where it is (SIGUSR1)."""
        with contextlib.suppress(OSError):
            self.process.send_signal(signal.SIGUSR1)
        self.wait(1)
        self.kill()  # a call that is stuck in a driver may ignore SIGUSR1
        self.wait(END_SECONDS)

    def close(self) -> None:
        """Kill the child, wait until its memory is free, and close its files."""
        self.kill()
        self.wait(END_SECONDS)
        for file in (self.process.stdin, self.process.stdout, self._errors):
            if file:
                with contextlib.suppress(OSError):
                    file.close()


def start_serving() -> IO[str]:
    """Prepare a child that answers in lines: return its stdout, and send what libraries print to stderr."""
    die_with_parent()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def send_answer(out: IO[str], **answer: Any) -> None:
    """Write an answer to the stream of `start_serving`, as one line of JSON."""
    out.write(json.dumps(answer, allow_nan=False) + "\n")
    out.flush()


def die_with_parent() -> None:
    """Prepare a child that may hang or run out of memory: it dies with or before its parent.

    On SIGUSR1 it writes a traceback to stderr, also from within a call of C, and ends.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, chain=True)
    request_kill_on_parent_death()


def request_kill_on_parent_death(is_wanted: bool = True) -> None:
    """Have the kernel kill this process as soon as its parent dies, and before it where memory runs out.

    Where it `is_wanted` no more, memory alone is a reason.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL if is_wanted else 0)
    with contextlib.suppress(OSError):  # Linux alone has it
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJ)


@contextlib.contextmanager
def frozen_imports() -> Iterator[None]:
    """Exempt what is imported inside from garbage collection, now and later (gc.freeze).

    torch and MLflow are some 300,000 objects each. The collector would go through them again and again while
    they are imported, for an eighth to a fifth of the time, and later for 0.1 s in the middle of a run.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
