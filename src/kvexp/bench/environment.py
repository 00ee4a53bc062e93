"""Read the columns about the machine and the software, in the measuring process when it starts."""

import importlib.metadata
import os
import platform
import socket
from pathlib import Path
from typing import Any

import torch

import kvexp
from kvexp.bench import impl_hash
from kvexp.errors import Unsupported
from kvexp.gpu import nvml
from kvexp.host.checkout import find_checkout
from kvexp.host.process import ask_git
from kvexp.measurement import ENVIRONMENT


def resolve_device(requested: str) -> str:
    """Return the device that `auto`, `cuda`, `cuda:N` or `cpu` means on this machine: `cuda:N` or `cpu`.

    Raises:
        Unsupported: The machine has no such GPU.
    """
    if requested == "cpu":
        return "cpu"
    count = torch.cuda.device_count()
    if requested == "auto":
        return "cuda:0" if count else "cpu"
    index = int(requested.partition(":")[2] or 0)
    if index >= count:
        has = f"{count} GPU{'s' * (count != 1)}" if count else "no GPU that torch can use"
        raise Unsupported(f"device={requested} was asked for and this machine has {has}")
    return f"cuda:{index}"


def read(device: str | None) -> dict[str, Any]:
    """Return the row's columns about the machine; None where something does not apply or is unknown.

    `device` is None when the machine lacks the one that was asked for.
    """
    return {
        **dict.fromkeys(ENVIRONMENT),
        **_read_device(device),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda_core": _version("cuda-core"),
        "python": platform.python_version(),
        "kvexp": kvexp.__version__,
        "source_hash": impl_hash.source_hash(),
        **_read_commit(),
        "host": socket.gethostname(),
        "cpu": _read_cpu_name(),
        "cpu_threads": torch.get_num_threads(),
    }


def _read_device(device: str | None) -> dict[str, Any]:
    if device is None:
        return {}
    if device == "cpu":
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"device_name": _read_cpu_name(), "device_memory_bytes": memory_bytes}
    properties = torch.cuda.get_device_properties(torch.device(device))
    return {
        "device_name": properties.name,
        "device_uuid": read_uuid(device),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "device_memory_bytes": properties.total_memory,
        "driver": nvml.read_driver_version(),
    }


def read_uuid(device: str) -> str | None:
    """Return the identity of a GPU; None of a CPU."""
    if device == "cpu":
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _read_commit() -> dict[str, Any]:
    """Return commit and dirty flag of the checkout that kvexp runs from; None when it runs from none.

    Files that git does not know are no change: `source_hash` covers those among kvexp's sources.
    """
    unknown: dict[str, Any] = {"git_commit": None, "git_dirty": None}
    root = find_checkout(Path(__file__))
    if root is None:
        return unknown
    commit = _run_git(root, "rev-parse", "HEAD")
    status = _run_git(root, "status", "--porcelain", "--untracked-files=no")
    return unknown if not commit or status is None else {"git_commit": commit, "git_dirty": bool(status)}


def _run_git(root: Path, *arguments: str) -> str | None:
    # A copied .git may hold the sizes and times of other files: these settings make git read the content.
    careful = ("--no-optional-locks", "-c", "core.trustctime=true", "-c", "core.checkStat=default")
    said = ask_git("-C", root, *careful, *arguments)
    return None if said is None else said.decode(errors="replace").strip()
