"""Lay out and fill the memory of keys and values."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvexp.case import Case

ALIGNED_BYTES = 16
"""The widest access of one thread."""

ALIGNED_ITEMS = 64
"""Items to a multiple of which a plane's start is rounded up: at least 64 bytes for every type."""

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

    def for_case(self, case: Case, windows: int = 1, step: int = 0) -> "Rows":
        """Return the rows of a case with so many windows, each `step` rows after the previous one.

        They begin where the memory begins and the values follow the keys immediately, as if the point were
        the curve's only one: where they just fit the L2, their distance matters (docs/log.md, vv).
        """
        count = (windows - 1) * step + case.num_tokens + case.extra_tokens
        return _view_rows(self.flat[: _count_rounded(case, count)], case, count)

    def fill(self, generator: torch.Generator) -> None:
        """Fill every item, gaps included, with a normal random number; keep the tensor's version counter."""
        flat = self.flat.data
        if flat.itemsize > 1:
            flat.normal_(generator=generator)
            return
        for part in flat.split(FILL_ITEMS):
            part.copy_(torch.randn(part.shape, generator=generator, device=part.device))


def count_items(case: Case, item_bytes: int, least_rows: int = 0) -> int:
    """Return the items of the inputs' memory for a curve whose largest point is `case`."""
    return _count_rounded(case, count_rows(case, item_bytes, least_rows))


def allocate(case: Case, source: torch.dtype, device: torch.device, least_rows: int = 0) -> Rows:
    """Allocate inputs for a curve whose largest point is `case`, without setting their contents."""
    flat = torch.empty(count_items(case, source.itemsize, least_rows), dtype=source, device=device)
    return _view_rows(flat, case, count_rows(case, source.itemsize, least_rows))


def count_rows(case: Case, item_bytes: int, least_rows: int = 0) -> int:
    """Return the rows for two windows of the largest call, or `least_rows` if more."""
    own = min(case.num_tokens, case.num_slots) + case.extra_tokens
    return max(least_rows, own + window_step(case, item_bytes))


def window_step(case: Case, item_bytes: int, cold: bool = False) -> int:
    """Return the rows from one window of inputs to the next; all windows have the same alignment.

    Args:
        case: The point.
        item_bytes: Bytes of a source item.
        cold: Windows share no row. Otherwise they share as many as alignment allows, so that each token has
            another row in the next window, and all windows take no more of the L2 than one.
    """
    (_, key_stride), (_, value_stride), _ = _place(case, 0)
    pieces = (ALIGNED_BYTES // math.gcd(ALIGNED_BYTES, s * item_bytes) for s in (key_stride, value_stride))
    multiple = max(pieces)
    if not cold:
        return multiple
    return -(-(case.num_tokens + case.extra_tokens) // multiple) * multiple


def _count_rounded(case: Case, count: int) -> int:
    """Return the items of so many rows, rounded up so that a point's data is the same on every curve."""
    _, _, total = _place(case, count)
    return -(-total // ALIGNED_ITEMS) * ALIGNED_ITEMS


def _view_rows(flat: Tensor, case: Case, count: int) -> Rows:
    """Return `count` rows of keys and of values as views of flat memory."""
    (key_at, key_stride), (value_at, value_stride), _ = _place(case, count)
    heads = case.num_heads
    key = flat.as_strided((count, heads, case.head_size), (key_stride, case.head_size, 1), key_at)
    value = flat.as_strided((count, heads, case.head_size_v), (value_stride, case.head_size_v, 1), value_at)
    return Rows(flat, key, value)


def _place(case: Case, count: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Return start and row stride of key and of value, and the size of both, in items.

    contiguous: each its own tensor; qkv: views of a fused tensor of query, key and value heads;
    misaligned: each begins one item after an aligned address.
    """
    heads = case.num_heads
    key_row, value_row = heads * case.head_size, heads * case.head_size_v
    if case.rows == "qkv":
        key_at = case.num_query_heads * case.head_size
        stride = key_at + key_row + value_row
        return (key_at, stride), (key_at + key_row, stride), count * stride
    off = 1 if case.rows == "misaligned" else 0
    key_items = -(-(off + count * key_row) // ALIGNED_ITEMS) * ALIGNED_ITEMS
    return (off, key_row), (key_items + off, value_row), key_items + off + count * value_row
