"""The folder that Hydra makes before it composes."""

from pathlib import Path


def forget(folder: Path) -> None:
    """A sweep's folder that holds only what Hydra wrote is gone, and the empty folders above it.

    Args:
        folder: Absolute; one that holds anything else, or the current folder, stays as it is.
    """
    here = Path.cwd()
    if not folder.is_dir() or folder == here or folder in here.parents:
        return
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if not all(path.name == "multirun.yaml" or path.parent.name == ".hydra" for path in files):
        return
    for file in files:
        file.unlink()
    for inner in sorted((path for path in folder.rglob("*")), reverse=True):
        inner.rmdir()
    for empty in (folder, *folder.parents):
        if empty == here or any(empty.iterdir()):
            return
        empty.rmdir()
