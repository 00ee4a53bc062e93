"""Compare the software of another machine with that of this one."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

import kvexp
from kvexp.bench import impl_hash
from kvexp.gpu import nvml


def list_differences(environment: Mapping[str, Any]) -> Iterator[str]:
    """List what differs there, given its columns; what is unknown on either side does not differ."""
    here = {
        "kvexp": kvexp.__version__,
        "source_hash": impl_hash.source_hash(),
        "torch": _read_torch_version(),
        "driver": nvml.read_driver_version(),
    }
    for name, own in here.items():
        other = environment.get(name)
        if other and own and other != own:
            yield f"{_WORDS.get(name, name)} {other} and not {own}"


def _read_torch_version() -> str | None:
    """Return the version of the installed torch, without importing it."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


_WORDS = {"source_hash": "kvexp's sources of hash", "driver": "the driver"}
