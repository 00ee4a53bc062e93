"""Hash source files: an implementation's, so that a changed kernel is another one, and kvexp's own."""

import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

BUILT_FROM = {".pyx", ".cu", ".c", ".cc", ".cpp"}
SUFFIXES = BUILT_FROM | {".py", ".cuh", ".h", ".hpp", ".ptx", ".cubin", ".so"}
INDEPENDENT = "kvexp.impl"
"""The package whose modules never import one another: each file in it is an implementation of its own."""

SHIPPED = SUFFIXES | {".yaml", ".j2", ".css", ".js"}
"""Suffixes of the package's files that a measurement or its report depends on."""


def conf_dir() -> Path:
    """Return the folder of kvexp's own YAML files: the wheel's copy, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parents[1] / "conf"


@functools.cache
def source_hash() -> str | None:
    """Return a hash of kvexp's sources and options; None when they cannot be read.

    It is the same for a wheel and a checkout. Computed once a process.
    """
    package, conf = Path(__file__).resolve().parents[1], conf_dir()
    named = {
        f"{folder.name}/{file.relative_to(folder).as_posix()}": file
        for folder in (package, conf)
        for file in folder.rglob("*")
        if file.suffix in SHIPPED and (folder == conf or conf not in file.parents)
    }
    return _digest(sorted(named.items()))


@functools.cache
def hash_impl(target: str) -> str | None:
    """Return a hash of the sources of the class at the dotted path `target`; None when it cannot be read.

    A package is hashed whole, with its kernels. So is the package that a module belongs to. Left out is an
    `.so` beside the sources it is built from, which may appear while a sweep runs. Of a module of
    `kvexp.impl`, or one in no package, the file alone is hashed. Computed once a process, since an edit does
    not change what was imported.
    """
    module = target.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin)
    alone = spec.submodule_search_locations is None and spec.parent in ("", INDEPENDENT)
    root = file if alone else file.parent
    return _digest((str(source.relative_to(root)), source) for source in _files(root))


def _digest(named: Iterable[tuple[str, Path]]) -> str | None:
    """Return a hash of the files' names, sizes and bytes; None when one cannot be read."""
    digest = hashlib.sha256()
    try:
        for name, file in named:
            content = file.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
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
