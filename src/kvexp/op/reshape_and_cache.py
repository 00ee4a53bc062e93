"""reshape_and_cache: write K and V of each token to the head-major planes of vLLM's first paged attention."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout, load_layouts
from kvexp.layout.head_major import PIECE_BYTES
from kvexp.op.cache_write import CacheWrite

if TYPE_CHECKING:
    from torch import Tensor


def reshape_and_cache(
    key: "Tensor",
    value: "Tensor",
    key_cache: "Tensor",
    value_cache: "Tensor",
    slot_mapping: "Tensor",
    kv_cache_dtype: str,
    k_scale: "Tensor | None" = None,
    v_scale: "Tensor | None" = None,
    *,
    impl: str = "cuda",
    check_slots: bool = False,
) -> None:
    """Write each token's key and value into its slot of a head-major cache.

    Args:
        key: `[>= num_tokens, num_heads, head_size]`; rows may be any distance apart.
        value: The same.
        key_cache: `[num_blocks, num_heads, head_size / x, block_size, x]`, x the items in 16 bytes; written.
        value_cache: `[num_blocks, num_heads, head_size, block_size]`; written.
        slot_mapping: int64 `[num_tokens]`; a negative slot, or one past the last, writes nothing.
        kv_cache_dtype: `auto`, `fp8` (which is `fp8_e4m3`), `fp8_e4m3` or `fp8_e5m2`.
        k_scale: float32 with one element or `[num_heads]`; fp8 stores `key / k_scale`. Not read for `auto`.
        v_scale: The same for values, of the same shape.
        impl: `cuda`, `triton` or `torch`.
        check_slots: Wait for the GPU and raise when a slot is past the last.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is invalid, or the implementation cannot do the call.
    """


class ReshapeAndCache(CacheWrite):
    """`key_cache[block, head, i // x, offset, i % x] = key[token, head, i]`; V at `[block, head, i, offset]`.

    key `[num_blocks, num_heads, head_size / x, block_size, x]`, value `[num_blocks, num_heads, head_size,
    block_size]`, x the items in 16 bytes. The stride from block to block is free; each block is contiguous.
    Semantics: docs/semantics.md.
    """

    name = "reshape_and_cache"
    function = staticmethod(reshape_and_cache)
    writes = ("key_cache", "value_cache")
    twins = MappingProxyType(dict.fromkeys(load_layouts(), "head_major"))

    def check_layout(self, layout: Layout) -> None:
        """See `CacheWrite.check_layout`."""
        if layout.shape != "head_major":
            raise Unsupported(
                f"op={self.name} writes head-major planes, which layout={layout.name} does not have; "
                "try layout=head_major"
            )

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        super().check(case, layout, item_bytes)
        x = layout.head_multiple(case.cache_item_bytes(item_bytes))
        if case.head_size % x:
            raise Unsupported(
                f"head_size {case.head_size} is not a multiple of {x}, the cache items of 16 bytes, which "
                f"op={self.name} needs"
            )

    def check_caches(self, kv_cache_dtype: str, rows: "Sequence[Tensor]", *caches: "Tensor") -> int:
        """See `CacheWrite.check_caches`."""
        from kvexp.op.arguments import check_own_memory, format_shape, has_strides  # imports torch

        key_cache, value_cache = caches
        _, num_heads, head_size = rows[0].shape
        x = PIECE_BYTES // key_cache.itemsize
        if head_size % x:
            raise ValueError(f"key must have heads of a multiple of {x} elements, not {head_size}")
        if value_cache.dim() != 4 or tuple(value_cache.shape[1:3]) != (num_heads, head_size):
            raise ValueError(
                f"value_cache must be [num_blocks, {num_heads}, {head_size}, block_size], "
                f"not {format_shape(value_cache)}"
            )
        num_blocks, _, _, block_size = value_cache.shape
        wanted = (num_blocks, num_heads, head_size // x, block_size, x)
        if tuple(key_cache.shape) != wanted:
            raise ValueError(
                f"key_cache must be {list(wanted)} to fit value_cache, not {format_shape(key_cache)}"
            )
        inside = (head_size * block_size, block_size * x, x, 1)
        for name, cache, strides in (
            ("key_cache", key_cache, (None, *inside)),
            ("value_cache", value_cache, (None, head_size * block_size, block_size, 1)),
        ):
            if not has_strides(cache, strides):
                raise ValueError(
                    f"{name} must be contiguous inside a block, not have the strides {cache.stride()}"
                )
            check_own_memory(name, cache)
        return num_blocks * block_size
