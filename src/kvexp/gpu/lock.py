"""Hold a host-wide lock per GPU: one kvexp process at a time measures on it, for one curve.

A GPU has two files in a folder that every user may write. The process that measures a curve locks
`UUID.lock`; the next in line locks `UUID.next`, so that a process that has just measured queues behind it.
The system releases the locks of a process that died.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kvexp.errors import Unsupported
from kvexp.host import file_lock

OnWait = Callable[[str | None], None]
"""Called with `process 12` when that process holds the lock, again each minute, and with None at the end."""

REPORT_SECONDS = 60.0

EXIT_TIMEOUT_S = 10.0
"""How long to wait for a killed holder to exit."""

_held: set[str] = set()


def lock_dir() -> Path:
    """Return `$KVEXP_LOCK_DIR`, else a folder in /tmp; TMPDIR may be private to one user."""
    return Path(os.environ.get("KVEXP_LOCK_DIR") or "/tmp/kvexp-locks")


@contextmanager
def gpu_lock(uuid: str | None, on_wait: OnWait = lambda _: None) -> Iterator[None]:
    """Hold the GPU's lock inside the block; a holder goes on, as does a CPU, which has no UUID.

    Raises:
        Unsupported: The lock files cannot be used.
    """
    if uuid is None or uuid in _held:
        yield
        return
    with ExitStack() as stack:
        try:
            _acquire(uuid, on_wait, stack)
        except OSError as error:
            raise Unsupported(
                f"locking {uuid} needs files in {lock_dir()}, which cannot be used ({error.strerror}); "
                "KVEXP_LOCK_DIR can name another folder, the same for all who measure on that GPU"
            ) from error
        _held.add(uuid)
        stack.callback(_held.discard, uuid)
        yield


def list_holders() -> Iterator[tuple[str, str]]:
    """Yield the UUID of each locked GPU and the lock's holder, as `process 12`."""
    for file in sorted(lock_dir().glob("*.lock")):
        if holder := file_lock.find_holder(file):
            yield file.stem, holder


def _acquire(uuid: str, on_wait: OnWait, stack: ExitStack) -> None:
    """Wait for the GPU's lock and hold it until the stack is left."""
    with ExitStack() as queue:
        directory = _open_dir(queue)
        waited = False
        for name, until in ((f"{uuid}.next", queue), (f"{uuid}.lock", stack)):
            handle = _open_file(name, directory)
            until.callback(os.close, handle)
            if not file_lock.try_lock(handle):
                # There is no holder where a process only asked for one, or the next one has not taken it yet.
                holder = file_lock.find_holder(lock_dir() / f"{uuid}.lock")
                if holder and not waited:
                    on_wait(holder)
                    waited = True
                with _report_again(on_wait, holder):
                    file_lock.wait(handle)
        # The system releases a lock before it has freed all GPU memory of a killed process.
        file_lock.wait_for_exit(handle, EXIT_TIMEOUT_S)
        file_lock.write_pid(handle)
        # Nobody shall be told of this process before the next holder has written its number.
        stack.callback(os.ftruncate, handle, 0)
    if waited:
        on_wait(None)


@contextmanager
def _report_again(on_wait: OnWait, holder: str | None) -> Iterator[None]:
    """Report inside the block again and again that the process still waits for the holder, if it is known."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(REPORT_SECONDS):
            on_wait(holder)

    reporter = threading.Thread(target=report, daemon=True)
    if holder:
        reporter.start()
    try:
        yield
    finally:
        over.set()
        if holder:
            reporter.join()


def _open_dir(stack: ExitStack) -> int:
    """Open the folder until the stack is left; create it for every user if it is missing."""
    with _zero_umask(), suppress(FileExistsError):
        lock_dir().mkdir(0o1777)
    directory = os.open(lock_dir(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    stack.callback(os.close, directory)
    return directory


@contextmanager
def _zero_umask() -> Iterator[None]:
    """Create files inside the block with exactly the mode that is asked for."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def _open_file(name: str, directory: int) -> int:
    """Open that file of the folder; create it for every user if it is missing."""
    flags = os.O_RDWR | os.O_NOFOLLOW
    while True:
        # Without O_CREAT: with it Linux may refuse another user's file in such a folder (protected_regular).
        with suppress(FileNotFoundError):
            return os.open(name, flags, dir_fd=directory)
        with _zero_umask(), suppress(FileExistsError):
            return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
