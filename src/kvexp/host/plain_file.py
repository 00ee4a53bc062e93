"""Open files that nothing waits for, write through no link, and tell which part of a path is gone.

A folder may have been made by someone else, and be removed while kvexp works in it.
"""

import errno
import os
import stat
import uuid
from pathlib import Path

_NO_FILE = "it is a pipe, a device or a folder, not a file"
_IS_LINK = "it is a symbolic link, which is not followed"


def find_gone(path: Path) -> Path | None:
    """Return the outermost part of an absolute path that is not there; None where all of it is."""
    for part in (*reversed(path.parents), path):
        try:
            part.lstat()
        except FileNotFoundError:
            return part
        except OSError:  # nothing is known of it
            return None
    return None


def is_here_gone() -> bool:
    """Return whether the current folder is gone."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def open_plain(file: str | os.PathLike[str], flags: int) -> int:
    """Open a file as `open_regular` does, if it is no symbolic link.

    Raises:
        OSError: It is a symbolic link, a pipe or a device, or cannot be opened.
    """
    try:
        return open_regular(file, flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(file):
            raise OSError(errno.ELOOP, _IS_LINK, os.fspath(file)) from error
        raise


def open_regular(file: str | os.PathLike[str], flags: int) -> int:
    """Open a file, as the `opener` of `open` does, if it is one: nothing that could wait or has no end.

    Raises:
        OSError: It is a pipe, a device or a folder, or cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its other end.
    handle = os.open(file, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, _NO_FILE, os.fspath(file))
    return handle


def replace(file: Path, content: bytes) -> None:
    """Write the content beside the file and rename it: a link there is replaced, and its target stays.

    Raises:
        OSError: It cannot be written; what was there stays. A device, a pipe or a link to one is refused.
    """
    # /dev/stdout is a link into /proc, also where the output goes to a file.
    is_stream = file.is_symlink() and os.readlink(file).startswith(("/proc/", "/dev/"))
    if is_stream or (file.exists() and not file.is_file()):
        raise OSError(errno.EINVAL, _NO_FILE, os.fspath(file))
    new = file.with_name(f".{uuid.uuid4().hex}")
    try:
        with open(new, "xb", opener=open_plain) as handle:
            handle.write(content)
        os.replace(new, file)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = os.fspath(file)
        raise
