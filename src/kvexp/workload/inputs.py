"""How key and value lie in memory before the call."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvexp.case import Case

KINDS = ("contiguous", "qkv", "misaligned")
"""contiguous: each its own tensor; qkv: views of a fused tensor of query, key and value heads;
misaligned: each begins one item past an aligned address."""

ALIGNED_ITEMS = 64
"""Items that a plane's begin is rounded up to; 64 bytes and more, whatever the type."""

FILL_ITEMS = 64 << 20


@dataclass(frozen=True)
class Rows:
    """The inputs of one curve.

    Attributes:
        flat: The memory of both, gaps included, as items.
        key: `[num_rows, num_heads, head_size]`, a view of it.
        value: `[num_rows, num_heads, head_size_v]`, a view of it.
    """

    flat: Tensor
    key: Tensor
    value: Tensor

    def fill(self, generator: torch.Generator) -> None:
        """Every item is a normal number, gaps included."""
        if self.flat.itemsize > 1:
            self.flat.normal_(generator=generator)
            return
        for part in self.flat.split(FILL_ITEMS):
            part.copy_(torch.randn(part.shape, generator=generator, device=part.device))


def items(case: Case) -> int:
    """Items of the inputs' memory for a curve whose largest point is `case`."""
    _, _, total = _places(case)
    return total


def make(case: Case, source: torch.dtype, device: torch.device) -> Rows:
    """Inputs for a curve whose largest point is `case`; their contents are not set."""
    (key_at, key_stride), (value_at, value_stride), total = _places(case)
    flat = torch.empty(total, dtype=source, device=device)
    count, heads = num_rows(case), case.num_heads
    key = flat.as_strided((count, heads, case.head_size), (key_stride, case.head_size, 1), key_at)
    value = flat.as_strided((count, heads, case.head_size_v), (value_stride, case.head_size_v, 1), value_at)
    return Rows(flat, key, value)


def num_rows(case: Case) -> int:
    """Rows that the largest call is given; no call has more tokens than there are slots."""
    return min(case.num_tokens, case.num_slots) + case.extra_tokens


def _places(case: Case) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Begin and row stride of key and of value, and the items of both, in items."""
    count, heads = num_rows(case), case.num_heads
    key_row, value_row = heads * case.head_size, heads * case.head_size_v
    if case.rows == "qkv":
        key_at = case.num_query_heads * case.head_size
        stride = key_at + key_row + value_row
        return (key_at, stride), (key_at + key_row, stride), count * stride
    off = 1 if case.rows == "misaligned" else 0
    key_items = -(-(off + count * key_row) // ALIGNED_ITEMS) * ALIGNED_ITEMS
    return (off, key_row), (key_items + off, value_row), key_items + off + count * value_row
