"""Keep contracts in the cache folder, each under a hash of everything that it depends on."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kvexp.bench import impl_hash
from kvexp.bench.contract import Contract
from kvexp.experiment import Experiment
from kvexp.host import disk_cache

MACHINE = ("device_name", "driver", "torch", "triton", "cuda", "cuda_core", "source_hash")
"""Columns of the machine that a contract depends on; `source_hash` since kvexp poses clauses and launches."""
PEERS = ("vllm", "flashinfer-python", "sglang")
"""Packages whose kernels are called by implementations whose own sources do not contain them."""
IGNORED = (
    *("name", "num_blocks", "slots", "batch", "recorded"),
    *("padding", "padding_at", "rows", "extra_tokens", "seed"),
)
"""Fields of a workload that each question chooses itself."""


def make_key(experiment: Experiment, machine: Mapping[str, Any]) -> str:
    """Return a hash of everything that the contract of a resolved curve depends on."""
    fields = asdict(experiment)
    for name in ("timer", "layout_reason"):
        del fields[name]
    workload = {name: value for name, value in fields["workload"].items() if name not in IGNORED}
    columns = [machine.get(column) for column in MACHINE]
    depends = [{**fields, "workload": workload}, _hash_impl(experiment), columns, _read_versions()]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def read(experiment: Experiment, key: str) -> Contract | None:
    """Return the kept contract; None where there is none, or where it cannot be read."""
    if not _hash_impl(experiment):
        return None
    try:
        return Contract.from_json(json.loads(disk_cache.read(f"contracts/{key}.json") or b""))
    except (ValueError, TypeError, KeyError):
        return None


def write(experiment: Experiment, key: str, contract: Contract) -> None:
    """Keep the contract; where the folder cannot be written, the next sweep asks again."""
    if _hash_impl(experiment):
        disk_cache.keep(f"contracts/{key}.json", json.dumps(asdict(contract)).encode())


def _hash_impl(experiment: Experiment) -> str | None:
    """Return the hash of the implementation's sources; one without sources is asked anew in each process."""
    return impl_hash.hash_impl(experiment.impl.target)


@functools.cache
def _read_versions() -> dict[str, str]:
    """Return the versions of the peers' packages that are installed."""
    found = {}
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
