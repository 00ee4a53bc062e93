"""reshape_and_cache_flash_per_token_head: how its kernel is specialised, fitted to tensors and tuned."""

import math
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl.cuda.items import Items, choose_vector, get_strides, measure_access
from kvexp.impl.cuda.launcher import Fitted, Macros, Spec
from kvexp.impl.cuda.options import Options

WARP = 32

LANE_ITEMS = 8
"""Most adjacent items of a lane: 16 bytes of the usual types, and the cache's aligned words of 8."""

CODES = {"int8_per_token_head": "INT8", "fp8_per_token_head": "E4M3"}
"""The kernel's name of the codes by `kv_cache_dtype`."""


@dataclass(frozen=True, kw_only=True)
class Heads(Spec):
    """The compile-time constants of one specialisation of per_token_head.cu: some lanes write a cell.

    Attributes:
        num_heads: KV heads of a token.
        head_size: Elements of a head of K.
        head_size_v: Elements of a head of V.
        block_size: Slots of a block.
        items: The items and their conversion.
        vec: Elements of a chunk.
        source_access: Bytes that divide the address of every row of key and value, at most 16.
        cache_access: Bytes that divide the address of every cell, at most 16.
        row_strides: Items from one row to the next, of key and of value.
        cache_strides: Bytes from one block, slot and head to the next.
    """

    num_heads: int
    head_size: int
    head_size_v: int
    block_size: int
    items: Items
    vec: int
    source_access: int
    cache_access: int
    row_strides: tuple[int, int]
    cache_strides: tuple[int, int, int]

    kernel = "per_token_head"
    num_addresses = 4

    @property
    def lanes(self) -> int:
        """Return the lanes of a cell: one for each chunk of the larger head, a power of two up to a warp."""
        chunks = max(self.head_size, self.head_size_v) // self.vec
        return int(min(WARP, 1 << (chunks - 1).bit_length()))

    def threads(self, num_tokens: int) -> int:
        """See `Spec.threads`."""
        return -(-num_tokens * self.num_heads // self.unroll) * self.lanes

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """See `Spec.sizes`."""
        return (num_tokens * self.num_heads,)

    @property
    def macros(self) -> Macros:
        """The constants as macros of the source."""
        return (
            *self.items.macros,
            ("NUM_HEADS", self.num_heads),
            ("HEAD_SIZE", self.head_size),
            ("HEAD_SIZE_V", self.head_size_v),
            ("BLOCK_SIZE", self.block_size),
            ("VEC", self.vec),
            ("LANES", self.lanes),
            ("SOURCE_ACCESS", min(self.source_access, self.vec * self.items.source_bytes)),
            ("CACHE_ACCESS", self.cache_access),
            ("KEY_STRIDE", f"{self.row_strides[0]}ll"),
            ("VALUE_STRIDE", f"{self.row_strides[1]}ll"),
            ("BLOCK_STRIDE", f"{self.cache_strides[0]}ll"),
            ("TOKEN_STRIDE", f"{self.cache_strides[1]}ll"),
            ("HEAD_STRIDE", f"{self.cache_strides[2]}ll"),
            ("UNROLL", self.unroll),
            ("WIDE_INDEX", int(self.wide_index)),
            ("THREADS", self.cta_threads),
        )

    def tuned(self, options: Options, num_tokens: int, sm_count: int) -> Self:
        """See `Spec.tuned`."""
        if (options.chunk_items or 1) > self.vec:
            raise Unsupported(
                f"impl.chunk_items={options.chunk_items} is more than the {self.vec} items that heads allow"
            )
        spec = replace(self, vec=options.chunk_items or self.vec, unroll=options.unroll or 1)
        return spec.with_ctas(options, num_tokens)


def fit(
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    *,
    options: Options,
) -> Fitted:
    """Return the specialisation for these tensors."""
    source = str(key.dtype).removeprefix("torch.")
    num_blocks, block_size, num_heads, _ = kv_cache.shape
    head_sizes = key.shape[2], value.shape[2]
    row_strides = (key.stride(0), value.stride(0))
    block_stride, token_stride, head_stride = cache_strides = get_strides(kv_cache, 3)
    vec = choose_vector(LANE_ITEMS, math.gcd(*head_sizes))
    _, source_access = measure_access(key.itemsize, row_strides, key, value)
    _, cache_access = measure_access(1, cache_strides, kv_cache)
    spec = Heads(
        num_heads=num_heads,
        head_size=head_sizes[0],
        head_size_v=head_sizes[1],
        block_size=block_size,
        items=Items(source, CODES[kv_cache_dtype], software_fp8=options.software_fp8),
        vec=vec,
        source_access=source_access,
        cache_access=cache_access,
        row_strides=row_strides,
        cache_strides=(block_stride, token_stride, head_stride),
    )
    return Fitted(spec, (num_blocks * block_size,), slot_mapping.shape[0])
