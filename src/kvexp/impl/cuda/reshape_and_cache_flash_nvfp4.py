"""reshape_and_cache_flash_nvfp4: how its kernel is specialised and fitted to tensors."""

import math
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from kvexp.impl.cuda.items import Items, get_strides, measure_access
from kvexp.impl.cuda.launcher import Fitted, Macros, Spec
from kvexp.impl.cuda.options import Options
from kvexp.op.reshape_and_cache_flash_nvfp4 import TILE, Page, find_page

CODES_BYTES = TILE // 2
"""Bytes of the items of a tile."""


@dataclass(frozen=True, kw_only=True)
class Nvfp4(Spec):
    """The compile-time constants of one specialisation of nvfp4.cu: a thread writes a tile.

    Attributes:
        items: The source's items, and the conversion of scales.
        page: Where rows of heads lie in a page.
        source_access: Bytes that divide every address of a row of key and of value, at most 16.
        codes_access: The same of the items of a tile in the cache, at most 8.
        row_strides: Items from one row to the next, of key and of value.
        block_stride: Bytes from one page to the next.
    """

    items: Items
    page: Page
    source_access: int
    codes_access: int
    row_strides: tuple[int, int]
    block_stride: int

    kernel = "nvfp4"
    num_addresses = 6

    @property
    def head_size(self) -> int:
        """Items of a head."""
        return self.page.widths[1] * TILE

    def tiles(self, num_tokens: int) -> int:
        """Return the tiles of K and V of so many tokens."""
        return 2 * num_tokens * self.page.num_heads * self.page.widths[1]

    def threads(self, num_tokens: int) -> int:
        """See `Spec.threads`."""
        return -(-self.tiles(num_tokens) // self.unroll)

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """See `Spec.sizes`."""
        return (self.tiles(num_tokens),)

    @property
    def macros(self) -> Macros:
        """The constants as macros of the source."""
        slot_rows, head_rows = self.page.strides
        return (
            *self.items.macros,
            ("NUM_HEADS", self.page.num_heads),
            ("HEAD_SIZE", self.head_size),
            ("BLOCK_SIZE", self.page.block_size),
            ("SLOT_ROWS", slot_rows),
            ("HEAD_ROWS", head_rows),
            ("SOURCE_ACCESS", self.source_access),
            ("CODES_ACCESS", self.codes_access),
            ("KEY_STRIDE", f"{self.row_strides[0]}ll"),
            ("VALUE_STRIDE", f"{self.row_strides[1]}ll"),
            ("BLOCK_STRIDE", f"{self.block_stride}ll"),
            ("UNROLL", self.unroll),
            ("WIDE_INDEX", int(self.wide_index)),
            ("THREADS", self.cta_threads),
        )

    def tuned(self, options: Options, num_tokens: int, sm_count: int) -> Self:
        """See `Spec.tuned`."""
        return replace(self, unroll=options.unroll or 1).with_ctas(options, num_tokens)


def fit(
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    layout: str,
    *,
    options: Options,
) -> Fitted:
    """Return the specialisation for these tensors."""
    page = find_page(key, kv_cache, layout)
    row_strides = (key.stride(0), value.stride(0))
    (block_stride,) = get_strides(kv_cache, 1)
    source = str(key.dtype).removeprefix("torch.")
    spec = Nvfp4(
        items=Items(source, "E4M3", software_fp8=options.software_fp8),
        page=page,
        source_access=measure_access(key.itemsize, row_strides, key, value)[1],
        codes_access=math.gcd(CODES_BYTES, kv_cache.data_ptr(), block_stride, page.side_bytes),
        row_strides=row_strides,
        block_stride=block_stride,
    )
    return Fitted(spec, (kv_cache.shape[0] * page.block_size,), slot_mapping.shape[0])
