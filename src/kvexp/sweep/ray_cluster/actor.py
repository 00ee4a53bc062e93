"""Run on a node, as an actor of Ray: start the measuring process there and pass its lines on."""

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import Any

from kvexp.host.process import END_SECONDS, LineChild

_DUMP_SECONDS = 0.5
"""Limit for a hung process to write where it is; the parent waits a second in all."""


@dataclass(frozen=True)
class Ended:
    """The end of a measuring process.

    Attributes:
        code: Its exit code, as subprocess gives it; None where it still runs.
        words: What it wrote to stderr at last.
    """

    code: int | None
    words: str


class Actor:
    """The measuring process of a node, which ends with the actor.

    Args:
        module: The process's.
        folder: Where kvexp was typed; the process runs there if the node has such a folder.
        last_bytes: How much of its stderr `Ended` has.
    """

    def __init__(self, module: str, folder: str, last_bytes: int) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._last_bytes = last_bytes
        self._child = LineChild(module)

    def send(self, line: str) -> None:
        """Send the process a line; where it has ended, `receive` says so."""
        with contextlib.suppress(OSError):
            self._child.send(line)

    def receive(self) -> dict[str, Any] | Ended:
        """Wait for the process's next answer, or its end."""
        try:
            return self._child.receive(None)
        except EOFError:
            return Ended(self._child.wait(END_SECONDS), self._child.read_errors(self._last_bytes))

    def dump(self) -> str:
        """Have a process that hangs write where it is, which ends it; return what it wrote to stderr."""
        with contextlib.suppress(OSError):
            self._child.process.send_signal(signal.SIGUSR1)
        self._child.wait(_DUMP_SECONDS)
        return self._child.read_errors(self._last_bytes)
