"""Remove the files and folders that a command has made where nothing was measured."""

from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path

from kvexp.host import file_lock
from kvexp.results.sweep_dir import COMMAND, LOCK

_HYDRA = ".hydra"
_WRITTEN = ("*", f"{_HYDRA}/*", "[0-9]*/*", f"[0-9]*/{_HYDRA}/*")
"""Patterns of what a command writes before any row: in a sweep's folder, then in a curve's."""


def list_existing(folder: Path) -> frozenset[Path]:
    """List what there is of the folder, of those above it, and of what a command would write in it."""
    return frozenset(chain(filter(Path.exists, (folder, *folder.parents)), _list_content(folder)))


def remove_unused_folder(folder: Path, existing: Collection[Path]) -> None:
    """Remove a sweep's or a curve's folder with only what is written before any row, and empty ones above.

    It is absolute. It stays if it holds anything else that is new, is locked, or is a symbolic link. What is
    `existing` stays, since it was there before the command; see `list_existing`.
    """
    if not folder.is_dir() or folder.is_symlink():
        return
    new = [path for path in _list_content(folder) if path not in existing]
    if not all(map(_is_removable, new)) or file_lock.find_holder(folder / LOCK):
        return
    for path in sorted(new, reverse=True):  # what a folder holds comes before it
        path.rmdir() if path.is_dir() else path.unlink()
    for empty in (folder, *folder.parents):
        if empty in existing or empty.is_symlink() or any(empty.iterdir()):
            return
        empty.rmdir()


def _list_content(folder: Path) -> Iterator[Path]:
    return chain.from_iterable(map(folder.glob, _WRITTEN))


def _is_removable(path: Path) -> bool:
    """Return whether it is a file that is written before any row, or a folder that holds only such files."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return all(map(_is_removable, path.iterdir()))
    return path.name in ("multirun.yaml", COMMAND, LOCK) or path.parent.name == _HYDRA
