"""Lock files between processes with flock; the system releases the lock of a process that was killed."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvexp.host.plain_file import open_plain

_POLL_S = 0.05


@contextmanager
def locked(file: Path, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold the file's lock inside the block; create the file if needed and write this process's number to it.

    Raises:
        TimeoutError: Another process still holds the lock after `timeout_s`; the message names it.
        OSError: The file cannot be opened, or is a symbolic link.
    """
    # `find_holder` takes a shared lock for an instant, so one attempt is not enough.
    until = time.monotonic() + max(timeout_s, _POLL_S)
    with open(file, "a+", opener=open_plain) as handle:
        while not try_lock(handle.fileno()):
            if time.monotonic() >= until:
                raise TimeoutError(f"{file} is held by {_describe_holder(handle.fileno())}")
            time.sleep(_POLL_S)
        write_pid(handle.fileno())
        yield


def find_holder(file: Path) -> str | None:
    """Return who holds the lock, as `process 12`; None when nobody does, or there is no such file."""
    try:
        handle = open_plain(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        # Shared and unsigned: whoever asks is not a holder.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _describe_holder(handle)
    finally:
        os.close(handle)
    return None


def try_lock(handle: int) -> bool:
    """Lock the open file until it is closed, unless another process holds it; return whether it is locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(handle: int) -> None:
    """Wait for the lock of the open file and hold it until the file is closed."""
    fcntl.flock(handle, fcntl.LOCK_EX)


def write_pid(handle: int) -> None:
    """Write this process's number to the file."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)


def wait_for_exit(handle: int, timeout_s: float) -> None:
    """Wait until the process that the open file names has ended.

    A holder that was killed leaves its number in the file. A process in another container may be invisible
    here, and the number may belong to another process by now, so the wait ends after `timeout_s`.
    """
    signed = os.pread(handle, 32, 0)
    until = time.monotonic() + timeout_s
    while signed.isdigit() and time.monotonic() < until and _is_running(int(signed)):
        time.sleep(_POLL_S)


def _is_running(pid: int) -> bool:
    """Return whether the process is running; a zombie is not."""
    try:
        _, _, fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return False
    return fields.split()[0] not in ("Z", "X")


def _describe_holder(handle: int) -> str:
    pid = os.pread(handle, 32, 0).strip()
    return f"process {pid.decode()}" if pid.isdigit() else "another process"
