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
        while not taken(handle.fileno()):
            if time.monotonic() >= until:
                raise TimeoutError(f"{file} is held by {_holder(file)}")
            time.sleep(_AGAIN_S)
        sign(handle.fileno())
        yield


def holder(file: Path) -> str | None:
    """Who holds the file, as words; None when nobody does, or there is no such file."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        # Shared, and without a trace: who asks is no holder.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(file)
    finally:
        os.close(handle)
    return None


def taken(handle: int) -> bool:
    """Whether the open file is this process's now, until it is closed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(handle: int) -> None:
    """The open file is this process's, whenever that comes to be, until it is closed."""
    fcntl.flock(handle, fcntl.LOCK_EX)


def sign(handle: int) -> None:
    """The file names this process as its holder."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)


def _holder(file: Path) -> str:
    pid = file.read_text(errors="replace").strip()
    return f"process {pid}" if pid.isdecimal() else "another process"
