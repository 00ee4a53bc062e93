"""Remove the folders that Hydra made where nothing was measured."""

from pathlib import Path

from kvexp.host import file_lock
from kvexp.results.sweep_dir import COMMAND, LOCK


def remove_unused_folder(folder: Path) -> None:
    """Remove a folder that holds only what is written before any row, and the empty folders above it.

    Args:
        folder: A sweep's or a curve's, absolute. It stays if it holds anything else, is locked, or is the
            current folder, one above that, or a symbolic link.
    """
    here = Path.cwd()
    if not folder.is_dir() or folder.is_symlink() or folder == here or folder in here.parents:
        return
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    if any(path.is_symlink() for path in files):
        return
    if not all(
        path.name in ("multirun.yaml", COMMAND, LOCK) or path.parent.name == ".hydra" for path in files
    ):
        return
    if file_lock.find_holder(folder / LOCK):
        return
    for file in files:
        file.unlink()
    for inner in sorted((path for path in folder.rglob("*")), reverse=True):
        inner.rmdir()
    for empty in (folder, *folder.parents):
        if empty == here or empty.is_symlink() or any(empty.iterdir()):
            return
        empty.rmdir()
