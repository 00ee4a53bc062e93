"""Flush a GPU's L2 between series of calls."""

import torch

from kvexp.op import Call
from kvexp.timer.replay_plan import COLD_FACTOR


def make_flush(l2_bytes: int, device: str) -> Call:
    """Make a call that reads more than twice the L2, which evicts what was in it and leaves no dirty line."""
    memory = torch.ones(COLD_FACTOR * l2_bytes // 8 + 1, dtype=torch.int64, device=device)
    total = torch.empty((), dtype=torch.int64, device=device)

    def flush() -> None:
        torch.sum(memory, dim=0, out=total)

    flush()  # nothing is loaded for the first time while it is captured
    return flush
