"""The folders that Hydra makes before anything is measured."""

from pathlib import Path

from kvexp import file_lock
from kvexp.results.sweep_dir import COMMAND, LOCK


def forget(folder: Path) -> None:
    """A folder that holds only what was written before any row is gone, and the empty folders above it.

    Args:
        folder: A sweep's or a curve's, absolute; one that holds anything else, or the current folder, stays
            as it is.
    """
    here = Path.cwd()
    if not folder.is_dir() or folder == here or folder in here.parents:
        return
    files = [path for path in folder.rglob("*") if not path.is_dir()]
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
        if empty == here or any(empty.iterdir()):
            return
        empty.rmdir()
