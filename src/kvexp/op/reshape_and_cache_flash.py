"""reshape_and_cache_flash: write K and V of each token to two planes of FlashAttention's logical shape."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvexp.errors import Unsupported
from kvexp.layout import Layout
from kvexp.op import ValidCall
from kvexp.op.cache_write import CacheWrite
from kvexp.op.reshape_and_cache import ReshapeAndCache

if TYPE_CHECKING:
    from torch import Tensor


def reshape_and_cache_flash(
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
    """Write each token's key and value into its slot of two caches of FlashAttention's shape.

    With a key cache of five dims, which is head-major, the call is one of `reshape_and_cache`.

    Args:
        key: `[>= num_tokens, num_heads, head_size]`; rows may be any distance apart.
        value: The same.
        key_cache: `[num_blocks, block_size, num_heads, head_size]`, the last dim contiguous, or head-major as
            `reshape_and_cache` takes it; written.
        value_cache: The same with equal strides, or head-major as the key cache is; written.
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


class ReshapeAndCacheFlash(CacheWrite):
    """`key_cache[slot // block_size, slot % block_size] = key[token]` for each token, and the same for V.

    Caches have the logical shape `[num_blocks, block_size, num_heads, head_size]`; block, token and head
    strides are free, the last dim is contiguous, and both planes have equal strides. Layouts differ only
    in strides. Semantics: docs/semantics.md.
    """

    name = "reshape_and_cache_flash"
    function = staticmethod(reshape_and_cache_flash)
    writes = ("key_cache", "value_cache")

    def check_layout(self, layout: Layout) -> None:
        """See `CacheWrite.check_layout`."""
        if layout.shape != "flash":
            raise Unsupported(
                f"op={self.name} writes planes of [num_blocks, block_size, num_heads, head_size], "
                f"which layout={layout.name} does not have; try layout=NHD"
            )

    def validate(self, arguments: Sequence[Any]) -> ValidCall:
        """See `op.Op.validate`; a key cache of five dims is head-major, as for vLLM's Triton launcher."""
        key_cache = arguments[2]
        if hasattr(key_cache, "dim") and key_cache.dim() == 5:
            return ReshapeAndCache().validate(arguments)
        return super().validate(arguments)

    def check_caches(self, kv_cache_dtype: str, rows: "Sequence[Tensor]", *caches: "Tensor") -> int:
        """See `CacheWrite.check_caches`."""
        from kvexp.op.arguments import check_flash_cache, format_shape, has_strides  # imports torch

        key_cache, value_cache = caches
        _, num_heads, head_size = rows[0].shape
        if key_cache.dim() != 4:
            raise ValueError(
                f"key_cache must be [num_blocks, block_size, {num_heads}, {head_size}], or head-major "
                f"[num_blocks, {num_heads}, {head_size} / x, block_size, x], not {format_shape(key_cache)}"
            )
        for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
            check_flash_cache(name, cache, num_heads, head_size, "head_size")
        if value_cache.shape != key_cache.shape:
            raise ValueError(
                f"value_cache must be {format_shape(key_cache)} as key_cache is, "
                f"not {format_shape(value_cache)}"
            )
        if not has_strides(value_cache, key_cache.stride()):
            raise ValueError(
                f"value_cache must have the strides of key_cache, {key_cache.stride()}, "
                f"not {value_cache.stride()}"
            )
        return key_cache.shape[0] * key_cache.shape[1]
