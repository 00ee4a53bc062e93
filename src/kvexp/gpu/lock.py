"""Turns at a GPU: of all kvexp processes of a host, whoever's they are, one measures there, curve by curve.

A GPU has two files in a folder that every user may write. `UUID.lock` is locked by the process that measures
a curve, `UUID.next` by the one that waits to be next, so that who has just had a turn comes after it. The
system takes a lock back from a process that died.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kvexp import file_lock
from kvexp.errors import Unsupported

Waits = Callable[[str | None], None]
"""Is told of `process 12` where there is one to wait for, and of None when the turn has come."""

DYING_S = 10.0
"""For so many seconds at most a holder that was killed is waited for."""

_mine: set[str] = set()


def folder() -> Path:
    """`$KVEXP_LOCK_DIR`, else one in /tmp, not in TMPDIR: that may be a folder of one user's own."""
    return Path(os.environ.get("KVEXP_LOCK_DIR") or "/tmp/kvexp-locks")


@contextmanager
def turn(uuid: str | None, waits: Waits = lambda _: None) -> Iterator[None]:
    """No other process measures on the GPU meanwhile; one that has its turn already goes on.

    Args:
        uuid: The GPU's; None stands for a CPU, where there are no turns.
        waits: Told when another process is there first.

    Raises:
        Unsupported: The files cannot be locked.
    """
    if uuid is None or uuid in _mine:
        yield
        return
    with ExitStack() as stack:
        try:
            _wait(uuid, waits, stack)
        except OSError as error:
            raise Unsupported(
                f"turns at {uuid} need files in {folder()}, which cannot be used ({error.strerror}); "
                "KVEXP_LOCK_DIR can name another folder, the same for all who measure on that GPU"
            ) from error
        _mine.add(uuid)
        stack.callback(_mine.discard, uuid)
        yield


def holders() -> Iterator[tuple[str, str]]:
    """The UUID of each GPU that is measured on at this moment, and the holder of the turn, as words."""
    for file in sorted(folder().glob("*.lock")):
        if holder := file_lock.holder(file):
            yield file.stem, holder


def _wait(uuid: str, waits: Waits, stack: ExitStack) -> None:
    """The GPU's lock is this process's until the stack is left."""
    with ExitStack() as queue:
        place = _folder(queue)
        waited = False
        for name, until in ((f"{uuid}.next", queue), (f"{uuid}.lock", stack)):
            handle = _file(name, place)
            until.callback(os.close, handle)
            if not file_lock.taken(handle):
                # Nobody has it where somebody only asked who does, or its next holder is about to.
                holder = file_lock.holder(folder() / f"{uuid}.lock")
                if holder and not waited:
                    waits(holder)
                    waited = True
                file_lock.wait(handle)
        # The system takes a lock back before it has freed all that a killed process held on the GPU.
        file_lock.outlive(handle, DYING_S)
        file_lock.sign(handle)
        # Who asks before the next one has signed is not told of this process.
        stack.callback(os.ftruncate, handle, 0)
    if waited:
        waits(None)


def _folder(stack: ExitStack) -> int:
    """The folder, made for every user where it is missing, and open until the stack is left."""
    with _for_everyone(), suppress(FileExistsError):
        folder().mkdir(0o1777)
    place = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    stack.callback(os.close, place)
    return place


@contextmanager
def _for_everyone() -> Iterator[None]:
    """What is made has the mode that it is made with, from its first moment."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def _file(name: str, place: int) -> int:
    """That file of the folder, open; it is made for every user where it is missing."""
    flags = os.O_RDWR | os.O_NOFOLLOW
    while True:
        # Without O_CREAT, by which Linux may refuse another user's file in such a folder (protected_regular).
        with suppress(FileNotFoundError):
            return os.open(name, flags, dir_fd=place)
        with _for_everyone(), suppress(FileExistsError):
            return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=place)
