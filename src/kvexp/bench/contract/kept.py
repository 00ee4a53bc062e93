"""Keep what implementations answered in the cache folder, by everything that an answer depends on."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvexp import disk_cache
from kvexp.bench import impl_hash
from kvexp.bench.contract import Contract
from kvexp.experiment import Experiment

MACHINE = ("device_name", "driver", "torch", "triton", "cuda", "cuda_core", "source_hash")
"""Columns of the machine that an answer depends on; kvexp itself poses the clauses and launches kernels."""
PEERS = ("vllm", "flashinfer-python")
"""Packages whose kernels are asked by an implementation whose own sources say nothing of them."""
NO_MATTER = ("name", "num_blocks", "slots", "padding", "padding_at", "rows", "extra_tokens")
"""Fields of a workload that a question chooses itself."""


def key(experiment: Experiment, machine: Mapping[str, Any]) -> str:
    """Return a hash of everything that the curve's answer depends on.

    Args:
        experiment: The curve, resolved for this machine's device.
        machine: The machine's columns.
    """
    fields = asdict(experiment)
    for name in ("timer", "layout_reason"):
        del fields[name]
    workload = {name: value for name, value in fields["workload"].items() if name not in NO_MATTER}
    columns = [machine.get(column) for column in MACHINE]
    depends = [{**fields, "workload": workload}, _impl_hash(experiment), columns, _versions()]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def read(experiment: Experiment, key: str) -> Contract | None:
    """Return what was kept; None where nothing was, or where it cannot be read."""
    if not _impl_hash(experiment):
        return None
    try:
        return Contract.from_json(json.loads(_file(key).read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(experiment: Experiment, key: str, contract: Contract) -> None:
    """Keep the answer; a folder that cannot be written to costs the next sweep the questions again."""
    if _impl_hash(experiment):
        disk_cache.keep(_file(key), json.dumps(contract.to_json()).encode())


def _impl_hash(experiment: Experiment) -> str | None:
    """Return the hash of the implementation's sources; what has none is asked anew in each process."""
    return impl_hash.hash_impl(experiment.impl.target)


def _file(key: str) -> Path:
    return disk_cache.cache_dir() / "contracts" / f"{key}.json"


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of the peers' packages that are installed."""
    found = {}
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
