"""reshape_and_cache_flash_diffkv: write K and V of each token side by side to one cache."""

from typing import Any

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout
from kvexp.op import Call, check_types, count_bytes, get_method


class ReshapeAndCacheFlashDiffkv:
    """`kv_cache[slot // block_size, slot % block_size] = concatenated(key[token], value[token])`.

    One cache `[num_blocks, block_size, num_heads, head_size + head_size_v]`, K then V in the last dim, which
    is contiguous; the other strides are free. The head sizes may differ. Semantics: docs/semantics.md.
    """

    name = "reshape_and_cache_flash_diffkv"
    bytes_moved = staticmethod(count_bytes)

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        if not (layout.packed and layout.shape == "flash"):
            raise Unsupported(
                f"op={self.name} writes K and V side by side in one cache, "
                f"which layout={layout.name} is not; try layout=NHD_packed"
            )
        check_types(case)

    def bind(self, impl: Any, tensors: Any, slot_mapping: Any) -> Call:
        """See `op.Op.bind`."""
        return get_method(impl, self.name)(
            tensors.key,
            tensors.value,
            tensors.kv_cache,
            slot_mapping,
            tensors.kv_cache_dtype,
            tensors.k_scale,
            tensors.v_scale,
        )
