"""Measure what fp8 costs where each call also computes its scales, the claim of the seed documents.

docs/seeds.md has the command.
"""

from typing import Any

import torch
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.experiment import Choice
from kvexp.impl import make
from kvexp.op import FP8, Call

WRITERS = {
    "cuda": "kvexp.impl.cuda.Cuda",
    "triton": "kvexp.impl.triton.Triton",
    "torch": "kvexp.impl.torch.Torch",
}


class ScalesThenWrite:
    """Compute the scales of keys and of values, largest magnitude over 64, by torch, then write.

    The write uses the curve's scales, since its bytes are compared with theirs; the computed scales go to
    separate memory. The work and its order are those of a call that uses them.

    Args:
        device: `cuda:N` or `cpu`.
        writer: The implementation that writes: `cuda`, `triton` or `torch`.
    """

    name = "scales_then_write"

    def __init__(self, device: str, writer: str) -> None:
        if writer not in WRITERS:
            raise Unsupported(f"impl.writer must be one of {', '.join(WRITERS)}, not {writer!r}")
        self.writer = make(Choice(writer, WRITERS[writer]), device=device)
        self.untimed: str = self.writer.untimed

    def reshape_and_cache(self, *arguments: Any) -> Call:
        """Bind `op.reshape_and_cache` to these arguments; the call computes its scales."""
        return self._bind("reshape_and_cache", *arguments)

    def reshape_and_cache_flash(self, *arguments: Any) -> Call:
        """Bind `op.reshape_and_cache_flash` to these arguments; the call computes its scales."""
        return self._bind("reshape_and_cache_flash", *arguments)

    def _bind(self, op: str, key: Tensor, value: Tensor, *others: Any) -> Call:
        *before, slot_mapping, kv_cache_dtype, k_scale, v_scale = others
        if kv_cache_dtype not in FP8 or key.itemsize == 1:
            raise Unsupported("impl=scales_then_write computes scales, and this call reads none")
        planes = [
            (rows[: len(slot_mapping)], torch.empty_like(scale))
            for rows, scale in ((key, k_scale), (value, v_scale))
        ]
        write = getattr(self.writer, op)(key, value, *before, slot_mapping, kv_cache_dtype, k_scale, v_scale)

        def call() -> None:
            for rows, scale in planes if len(slot_mapping) else ():
                write_scale(rows, scale)
            write()

        return call


def write_scale(rows: Tensor, scale: Tensor) -> None:
    """Write the rows' largest magnitude over 64 into the scale: of all rows, or of each head.

    Args:
        rows: `[num_tokens, num_heads, head_size]`.
        scale: float32 of one element or `[num_heads]`.
    """
    over = (0, 2) if scale.numel() > 1 else (0, 1, 2)
    torch.linalg.vector_norm(rows, float("inf"), dim=over, dtype=torch.float32, out=scale)
    scale.div_(64)
