"""Check whether a curve's tensors fit into the memory of its device."""

import math
from pathlib import Path

import torch

from kvexp.case import Case
from kvexp.errors import Unsupported

CGROUP = Path("/sys/fs/cgroup")
"""A container's own control group."""
WORKING_BYTES = 1 << 30
"""Memory for verification (chunks of rows) and graph capture, besides the tensors."""


def check(case: Case, cache_bytes: int, input_bytes: int) -> None:
    """Check that the curve's tensors fit.

    Args:
        case: The curve's largest point.
        cache_bytes: Bytes of its cache.
        input_bytes: Bytes of keys and values.

    Raises:
        Unsupported: They do not fit; the message says how many blocks would.
    """
    others = input_bytes + WORKING_BYTES
    # The order of the slots: the permutation and the memory to sort it.
    per_block = cache_bytes // case.num_blocks + 4 * 8 * case.block_size
    needed = per_block * case.num_blocks + others
    free = free_bytes(case.device)
    if needed <= free:
        return
    fits = max(0, (free - others) // per_block)
    advice = f"workload.num_blocks={fits} would fit" if fits else "no number of blocks would fit"
    raise Unsupported(
        f"the cache of {case.num_blocks} blocks and its inputs need {needed} bytes "
        f"and {case.device} has {free} free: {advice}"
    )


def free_bytes(device: str) -> float:
    """Return the bytes that a process can still allocate on the device."""
    if device == "cpu":
        import psutil  # imported only for a CPU: it takes 0.05 s

        return min(int(psutil.virtual_memory().available), _cgroup_free_bytes())
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(torch.device(device))[0]


def trim() -> None:
    """Return torch's unused GPU memory to the driver when it exceeds `WORKING_BYTES`.

    Memory of a deleted graph serves nobody else. Doing this at every point would cost some milliseconds each.
    """
    if torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > WORKING_BYTES:
        torch.cuda.empty_cache()


def _cgroup_free_bytes() -> float:
    """Return what a container's limit leaves, the page cache counted as free; infinity without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return math.inf if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return math.inf
