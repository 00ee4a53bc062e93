"""Find the folder for what is kept from run to run: compiled kernels, and answers about contracts."""

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """Return `$KVEXP_CACHE_DIR`, else `kvexp` in the user's cache folder, else a temporary folder."""
    if chosen := os.environ.get("KVEXP_CACHE_DIR"):
        return Path(chosen)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "kvexp"
    try:
        return Path.home() / ".cache" / "kvexp"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / f"kvexp-{os.getuid()}"
