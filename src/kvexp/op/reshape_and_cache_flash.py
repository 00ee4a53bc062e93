"""reshape_and_cache_flash: write K and V of each token to two planes of FlashAttention's logical shape."""

from typing import Any

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout
from kvexp.op import Call, check_equal_heads, check_types, count_bytes, get_method


class ReshapeAndCacheFlash:
    """`key_cache[slot // block_size, slot % block_size] = key[token]` for each token, and the same for V.

    Caches have the logical shape `[num_blocks, block_size, num_heads, head_size]`; block, token and head
    strides are free, the last dim is contiguous, and both planes have equal strides. Layouts differ only
    in strides. Semantics: docs/semantics.md.
    """

    name = "reshape_and_cache_flash"
    bytes_moved = staticmethod(count_bytes)

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        if layout.shape != "flash":
            raise Unsupported(
                f"op={self.name} writes planes of [num_blocks, block_size, num_heads, head_size], "
                f"which layout={layout.name} does not have; try layout=NHD"
            )
        check_equal_heads(self.name, case)
        check_types(case)

    def bind(self, impl: Any, tensors: Any, slot_mapping: Any) -> Call:
        """See `op.Op.bind`."""
        return get_method(impl, self.name)(
            tensors.key,
            tensors.value,
            tensors.key_cache,
            tensors.value_cache,
            slot_mapping,
            tensors.kv_cache_dtype,
            tensors.k_scale,
            tensors.v_scale,
        )
