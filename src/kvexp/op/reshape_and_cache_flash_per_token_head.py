"""reshape_and_cache_flash_per_token_head: write 8-bit codes and a scale for each head of a token."""

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout, Sizes
from kvexp.op import PER_TOKEN_HEAD
from kvexp.op.cache_write import CacheWrite

if TYPE_CHECKING:
    from torch import Tensor

SCALE_BYTES = 4
"""Bytes of a scale, a float32 behind the codes of its head."""


def reshape_and_cache_flash_per_token_head(
    key: "Tensor",
    value: "Tensor",
    kv_cache: "Tensor",
    slot_mapping: "Tensor",
    kv_cache_dtype: str,
    *,
    impl: str = "cuda",
    check_slots: bool = False,
) -> None:
    """Write each token's key and value into its slot of one cache as 8-bit codes, a scale behind each head.

    Args:
        key: `[>= num_tokens, num_heads, head_size]` of float16, bfloat16 or float32; rows may be any distance
            apart.
        value: `[>= num_tokens, num_heads, head_size_v]` of the same type.
        kv_cache: uint8 `[num_blocks, block_size, num_heads, head_size + 4 + head_size_v + 4]`: K's codes, its
            float32 scale, V's codes, its scale; the last dim contiguous; written.
        slot_mapping: int64 `[num_tokens]`; a negative slot, or one past the last, writes nothing.
        kv_cache_dtype: `int8_per_token_head` or `fp8_per_token_head`.
        impl: `cuda`, `triton` or `torch`.
        check_slots: Wait for the GPU and raise when a slot is past the last.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is invalid, or the implementation cannot do the call.
    """


class ReshapeAndCacheFlashPerTokenHead(CacheWrite):
    """`kv_cache[slot // block_size, slot % block_size]` holds codes and scale of each head of K, then of V.

    The scale of a head is made of its items in that token, so that no scale is read. The distances of blocks,
    slots and heads are free. Semantics: docs/semantics.md.
    """

    name = "reshape_and_cache_flash_per_token_head"
    function = staticmethod(reshape_and_cache_flash_per_token_head)
    writes = ("kv_cache",)
    scales = ()
    sources = ("half", "bfloat16", "float")
    parts = ("kv_cache (key)", "kv_cache (value)")
    formats = PER_TOKEN_HEAD
    equal_heads = False
    sample_sizes = MappingProxyType({"num_heads": 8, "head_size": 128, "head_size_v": 128})
    twins = MappingProxyType({"NHD": "NHD_packed", "HND": "HND_packed"})

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        super().check(case, layout, item_bytes)
        if case.scale != "per_tensor":
            raise Unsupported(
                f"op={self.name} makes a scale for each head of a token, so scale={case.scale} has no meaning"
            )

    def check_layout(self, layout: Layout) -> None:
        """See `CacheWrite.check_layout`."""
        if not (layout.packed and layout.shape == "flash"):
            raise Unsupported(
                f"op={self.name} writes K and V side by side in one cache, "
                f"which layout={layout.name} is not; try layout=NHD_packed"
            )

    def check_caches(self, kv_cache_dtype: str, rows: "Sequence[Tensor]", *caches: "Tensor") -> int:
        """See `CacheWrite.check_caches`."""
        from kvexp.op.arguments import check_flash_cache  # imports torch

        (key, value), (kv_cache,) = rows, caches
        width = key.shape[2] + value.shape[2] + 2 * SCALE_BYTES
        check_flash_cache("kv_cache", kv_cache, key.shape[1], width, "head_size + 4 + head_size_v + 4")
        return kv_cache.shape[0] * kv_cache.shape[1]

    def cache_sizes(self, case: Case) -> Sizes:
        """See `CacheWrite.cache_sizes`; a scale counts as items of its head."""
        return replace(
            case, head_size=case.head_size + SCALE_BYTES, head_size_v=case.head_size_v + SCALE_BYTES
        )

    def expect(self, cache: str, rows: "Tensor", kv_cache_dtype: str, scale: "Tensor | None") -> "Tensor":
        """See `CacheWrite.expect`."""
        from kvexp.op.quantize import quantize_heads  # imports torch

        return quantize_heads(rows, kv_cache_dtype)

    def count_tile_items(self, case: Case) -> int | None:
        """See `CacheWrite.count_tile_items`."""
        return case.head_size

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """See `op.Op.bytes_moved`."""
        read, written = super().bytes_moved(case, item_bytes)
        return read, written + case.written_tokens * case.num_heads * 2 * SCALE_BYTES
