"""How key and value lie in memory before the call."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvexp.case import Case

KINDS = ("contiguous", "qkv", "misaligned")
"""contiguous: each its own tensor; qkv: views of a fused tensor of query, key and value heads;
misaligned: each begins one item past an aligned address."""

ALIGNED_BYTES = 16
"""The widest access of one thread."""

ALIGNED_ITEMS = 64
"""Items that a plane's begin is rounded up to; 64 bytes and more, whatever the type."""

FILL_ITEMS = 64 << 20


@dataclass(frozen=True)
class Rows:
    """Keys and values of a curve's largest point, or of a smaller one in the same memory.

    Attributes:
        flat: The memory of both, gaps included, as items.
        key: `[num_rows, num_heads, head_size]`, a view of it.
        value: `[num_rows, num_heads, head_size_v]`, a view of it.
    """

    flat: Tensor
    key: Tensor
    value: Tensor

    def of(self, case: Case, windows: int = 1, step: int = 0) -> "Rows":
        """Return those of a case that walks through so many windows, each `step` rows behind the last.

        They begin where the memory begins, and the values follow the keys at once, as if the point were the
        curve's only one: where the L2 just holds them, it counts how far apart they are (docs/log.md, vv).
        """
        count = (windows - 1) * step + case.num_tokens + case.extra_tokens
        return _rows(self.flat[: _whole(case, count)], case, count)

    def fill(self, generator: torch.Generator) -> None:
        """Fill every item with a normal number, gaps included; the tensor's version stays."""
        flat = self.flat.data
        if flat.itemsize > 1:
            flat.normal_(generator=generator)
            return
        for part in flat.split(FILL_ITEMS):
            part.copy_(torch.randn(part.shape, generator=generator, device=part.device))


def items(case: Case, item_bytes: int, least_rows: int = 0) -> int:
    """Return the items of the inputs' memory for a curve whose largest point is `case`."""
    return _whole(case, num_rows(case, item_bytes, least_rows))


def make(case: Case, source: torch.dtype, device: torch.device, least_rows: int = 0) -> Rows:
    """Allocate inputs for a curve whose largest point is `case`; their contents are not set."""
    flat = torch.empty(items(case, source.itemsize, least_rows), dtype=source, device=device)
    return _rows(flat, case, num_rows(case, source.itemsize, least_rows))


def num_rows(case: Case, item_bytes: int, least_rows: int = 0) -> int:
    """Return the rows of two sets of the largest call, or more; the cache's slots bound its tokens."""
    own = min(case.num_tokens, case.num_slots) + case.extra_tokens
    return max(least_rows, own + window_step(case, item_bytes))


def window_step(case: Case, item_bytes: int, cold: bool = False) -> int:
    """Return the rows from one set of inputs to the next one; all sets are aligned alike.

    Args:
        case: The point.
        item_bytes: Bytes of a source item.
        cold: The sets share no row. Otherwise they share all but as few as the alignment allows, so that each
            token has another row in the next set, and all sets take no more of the L2 than one.
    """
    (_, key_stride), (_, value_stride), _ = _places(case, 0)
    pieces = (ALIGNED_BYTES // math.gcd(ALIGNED_BYTES, s * item_bytes) for s in (key_stride, value_stride))
    multiple = max(pieces)
    if not cold:
        return multiple
    return -(-(case.num_tokens + case.extra_tokens) // multiple) * multiple


def _whole(case: Case, count: int) -> int:
    """Return the items of so many rows, rounded up: what is drawn for a point is the same on every curve."""
    _, _, total = _places(case, count)
    return -(-total // ALIGNED_ITEMS) * ALIGNED_ITEMS


def _rows(flat: Tensor, case: Case, count: int) -> Rows:
    (key_at, key_stride), (value_at, value_stride), _ = _places(case, count)
    heads = case.num_heads
    key = flat.as_strided((count, heads, case.head_size), (key_stride, case.head_size, 1), key_at)
    value = flat.as_strided((count, heads, case.head_size_v), (value_stride, case.head_size_v, 1), value_at)
    return Rows(flat, key, value)


def _places(case: Case, count: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Begin and row stride of key and of value, and the items of both, in items."""
    heads = case.num_heads
    key_row, value_row = heads * case.head_size, heads * case.head_size_v
    if case.rows == "qkv":
        key_at = case.num_query_heads * case.head_size
        stride = key_at + key_row + value_row
        return (key_at, stride), (key_at + key_row, stride), count * stride
    off = 1 if case.rows == "misaligned" else 0
    key_items = -(-(off + count * key_row) // ALIGNED_ITEMS) * ALIGNED_ITEMS
    return (off, key_row), (key_items + off, value_row), key_items + off + count * value_row
