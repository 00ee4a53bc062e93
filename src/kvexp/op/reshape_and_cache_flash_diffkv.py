"""reshape_and_cache_flash_diffkv: write K and V of each token side by side to one cache."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from kvexp.errors import Unsupported
from kvexp.layout import Layout
from kvexp.op.cache_write import CacheWrite

if TYPE_CHECKING:
    from torch import Tensor


def reshape_and_cache_flash_diffkv(
    key: "Tensor",
    value: "Tensor",
    kv_cache: "Tensor",
    slot_mapping: "Tensor",
    kv_cache_dtype: str,
    k_scale: "Tensor | None" = None,
    v_scale: "Tensor | None" = None,
    *,
    impl: str = "cuda",
    check_slots: bool = False,
) -> None:
    """Write each token's key and value into its slot of one cache, K then V in the last dim.

    Args:
        key: `[>= num_tokens, num_heads, head_size]`; rows may be any distance apart.
        value: `[>= num_tokens, num_heads, head_size_v]`.
        kv_cache: `[num_blocks, block_size, num_heads, head_size + head_size_v]`, the last dim contiguous;
            written.
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


class ReshapeAndCacheFlashDiffkv(CacheWrite):
    """`kv_cache[slot // block_size, slot % block_size] = concatenated(key[token], value[token])`.

    One cache `[num_blocks, block_size, num_heads, head_size + head_size_v]`, K then V in the last dim, which
    is contiguous; the other strides are free. The head sizes may differ. Semantics: docs/semantics.md.
    """

    name = "reshape_and_cache_flash_diffkv"
    function = staticmethod(reshape_and_cache_flash_diffkv)
    writes = ("kv_cache",)
    equal_heads = False
    sample_sizes = MappingProxyType({"num_heads": 8, "head_size": 128, "head_size_v": 64})
    twins = MappingProxyType({"NHD": "NHD_packed", "HND": "HND_packed"})

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
        width = key.shape[2] + value.shape[2]
        check_flash_cache("kv_cache", kv_cache, key.shape[1], width, "head_size + head_size_v")
        return kv_cache.shape[0] * kv_cache.shape[1]
