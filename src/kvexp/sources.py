"""What an implementation is made of: a hash of its source files, so that a changed kernel is another one."""

import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

BUILT_FROM = {".pyx", ".cu", ".c", ".cc", ".cpp"}
SUFFIXES = BUILT_FROM | {".py", ".cuh", ".h", ".hpp", ".ptx", ".cubin", ".so"}
STRANGERS = "kvexp.impl"
"""The package whose modules never import one another: one of its files is an implementation of its own."""


@functools.cache
def impl_hash(target: str) -> str | None:
    """A hash of the sources of the class at the dotted path `target`; None when there are none to read.

    A package is hashed whole, with its kernels, and so is the package that a module belongs to, but for the
    `.so` that a build leaves beside what it is built from: it may appear while a sweep runs. A module of
    `kvexp.impl`, or one that is in no package, is its file. Read once a process, since what was imported
    stays the same after an edit.
    """
    module = target.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin)
    alone = spec.submodule_search_locations is None and spec.parent in ("", STRANGERS)
    root = file if alone else file.parent
    digest = hashlib.sha256()
    try:
        for source in _files(root):
            digest.update(f"{source.relative_to(root)}\0{source.stat().st_size}\0".encode())
            digest.update(source.read_bytes())
    except OSError:
        return None
    return digest.hexdigest()[:16]


def _files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    found = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    has_sources = any(path.suffix in BUILT_FROM for path in found)
    yield from (path for path in found if not (has_sources and path.suffix == ".so"))
