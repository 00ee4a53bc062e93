"""One process at a time, of all that lock the same file; a process that was killed leaves no lock behind."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AGAIN_S = 0.05


@contextmanager
def locked(file: Path, patience_s: float = 0.0) -> Iterator[None]:
    """This process alone is inside; the file is made when it is missing, and names its holder's process.

    Raises:
        TimeoutError: Another process still held the file after `patience_s`; the message names it.
    """
    until = time.monotonic() + patience_s
    with file.open("a+") as handle:
        while not _taken(handle.fileno()):
            if time.monotonic() >= until:
                raise TimeoutError(f"{file} is held by {_holder(file)}")
            time.sleep(_AGAIN_S)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def holder(file: Path) -> str | None:
    """Who holds the file, as words; None when nobody does, or there is no such file."""
    try:
        with locked(file) if file.exists() else file.open():
            return None
    except TimeoutError:
        return _holder(file)
    except OSError:
        return None


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: Path) -> str:
    pid = file.read_text(errors="replace").strip()
    return f"process {pid}" if pid.isdecimal() else "another process"
