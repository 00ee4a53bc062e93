"""Whether a curve's tensors fit into the memory of its device."""

import math
from pathlib import Path

import torch

from kvexp.case import Case
from kvexp.errors import Unsupported

CGROUP = Path("/sys/fs/cgroup")
"""What a container sees as its own group."""
WORKING_BYTES = 1 << 30
"""What verification (chunks of rows) and graph capture need beside the tensors."""


def check(case: Case, cache_bytes: int, input_bytes: int) -> None:
    """Returns when the curve's tensors fit.

    Args:
        case: The curve's largest point.
        cache_bytes: Bytes of its cache.
        input_bytes: Bytes of keys and values.

    Raises:
        Unsupported: They do not fit; the message says which number of blocks would.
    """
    others = input_bytes + WORKING_BYTES
    # The slots' order: the permutation and what sorting it takes.
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
    """Bytes that a process can still have there."""
    if device == "cpu":
        import psutil  # here, since a GPU does without: it takes 0.05 s

        return min(int(psutil.virtual_memory().available), _cgroup_free_bytes())
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(torch.device(device))[0]


def trim() -> None:
    """Gives the driver what torch keeps of the GPU's memory for later, where that is more than working takes.

    What a dead graph had allocated is of use to nobody else. To ask the driver again for everything at every
    point would cost some milliseconds each.
    """
    if torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > WORKING_BYTES:
        torch.cuda.empty_cache()


def _cgroup_free_bytes() -> float:
    """What a container's limit leaves, files in the page cache counted as free; infinite without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return math.inf if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return math.inf
