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
    # Who only asks for the holder has the file for an instant, so one look is not enough.
    until = time.monotonic() + max(patience_s, _AGAIN_S)
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


def outlive(handle: int, patience_s: float) -> None:
    """The process that the open file still names has ended: it was killed, or it would have unsigned.

    A process in another container may not be seen from here, and a number may belong to another process by
    now, so there is an end to the patience.
    """
    signed = os.pread(handle, 32, 0)
    until = time.monotonic() + patience_s
    while signed.isdigit() and time.monotonic() < until and _is_there(int(signed)):
        time.sleep(_AGAIN_S)


def _is_there(pid: int) -> bool:
    """Whether the process has not ended; one that is only waited for by its parent has."""
    try:
        _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    return fields.split()[0] not in ("Z", "X")


def _holder(file: Path) -> str:
    pid = file.read_text(errors="replace").strip()
    return f"process {pid}" if pid.isdecimal() else "another process"
