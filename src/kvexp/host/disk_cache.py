"""Keep compiled kernels and contract findings in a folder from run to run.

What lies there is run, so the folder, what is in it and each entry must be this user's own, not writable by
others, and no symbolic links: anyone may have made them first.
"""

import contextlib
import functools
import logging
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

VARIABLE = "KVEXP_CACHE_DIR"
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return `$KVEXP_CACHE_DIR` (`~` is the home folder), else `kvexp` in the user's cache folder or /tmp.

    One that cannot be trusted is replaced by the next of these, at last by a new one for this process alone;
    a warning says so, once.
    """
    chosen = os.environ.get(VARIABLE)
    folders = [Path(os.path.expanduser(chosen)).absolute()] if chosen else []
    faults = []
    for folder in (*folders, _get_default()):
        why = _find_fault(folder)
        if not why:
            break
        faults.append(f"{folder} ({why})")
    else:
        folder = Path(_make_private().name)
    if faults:
        _warn(f"kvexp: the cache folder {', nor '.join(faults)} is not used; kernels are kept in {folder}")
    return folder


def settle() -> None:
    """Choose the folder for this process and for those that it starts, so that a warning comes once."""
    os.environ[VARIABLE] = str(cache_dir())


def read(name: str) -> bytes | None:
    """Return the content of the entry, such as `contracts/1f.json`; None where there is none of one's own."""
    with contextlib.suppress(OSError), _open_folder(name) as folder:
        handle = os.open(PurePosixPath(name).name, os.O_RDONLY | _FLAGS, dir_fd=folder)
        with open(handle, "rb") as file:
            if not _describe_fault(os.fstat(handle), stat.S_ISREG):
                return file.read()
    return None


def keep(name: str, content: bytes) -> None:
    """Write an entry of the cache atomically; ignore a folder or a disk that cannot take it."""
    with contextlib.suppress(OSError), _open_folder(name, make=True) as folder:
        new = f".{uuid.uuid4().hex}"
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=folder)
        try:
            with open(handle, "wb") as file:
                file.write(content)
            os.replace(new, PurePosixPath(name).name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(new, dir_fd=folder)
            raise


def _get_default() -> Path:
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "kvexp"
    try:
        return Path.home() / ".cache" / "kvexp"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / f"kvexp-{os.getuid()}"


@functools.cache
def _make_private() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="kvexp-")


@functools.cache
def _warn(sentence: str) -> None:
    _log.warning(sentence)


def _find_fault(folder: Path) -> str:
    """Return why that folder cannot be trusted; empty where it can, or is not there yet."""
    try:
        return _describe_fault(folder.lstat(), stat.S_ISDIR)
    except OSError:
        return ""


def _describe_fault(found: os.stat_result, is_kind: Callable[[int], bool]) -> str:
    if stat.S_ISLNK(found.st_mode):
        return "a symbolic link"
    if not is_kind(found.st_mode):
        return "no folder"
    if found.st_uid != os.geteuid():
        return f"made by user {found.st_uid}"
    return "writable by others" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


@contextlib.contextmanager
def _open_folder(name: str, make: bool = False) -> Iterator[int]:
    """Open the folder of an entry, each part of it by what was opened before, so that none is exchanged.

    Raises:
        OSError: It is not there, or not one's own.
    """
    root = cache_dir()
    if make:
        root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = None
        for part in (str(root), *PurePosixPath(name).parts[:-1]):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=folder)
            folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=folder)
            stack.callback(os.close, folder)
            if why := _describe_fault(os.fstat(folder), stat.S_ISDIR):
                raise OSError(why)
        assert folder is not None
        yield folder
