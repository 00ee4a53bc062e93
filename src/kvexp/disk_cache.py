"""Keep compiled kernels and contract findings in a folder from run to run."""

import contextlib
import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """Return `$KVEXP_CACHE_DIR` (`~` is the home folder), else `kvexp` in the user's cache folder or /tmp."""
    if chosen := os.environ.get("KVEXP_CACHE_DIR"):
        return Path(os.path.expanduser(chosen))
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "kvexp"
    try:
        return Path.home() / ".cache" / "kvexp"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / f"kvexp-{os.getuid()}"


def keep(entry: Path, content: bytes) -> None:
    """Write an entry of the cache atomically; ignore a folder or a disk that cannot take it."""
    with contextlib.suppress(OSError):
        for folder in (cache_dir(), entry.parent):  # mkdir gives only the last folder its mode
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=entry.parent, prefix=entry.stem)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(name, entry)
        except OSError:
            os.unlink(name)
            raise
