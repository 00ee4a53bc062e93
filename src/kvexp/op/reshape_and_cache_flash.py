"""reshape_and_cache_flash: K and V of each token into two planes of the logical shape of FlashAttention."""

from typing import Any

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.op import Call, cache_item_bytes


class ReshapeAndCacheFlash:
    """`key_cache[slot // block_size, slot % block_size] = key[token]` for each token, and V alike.

    Caches have the logical shape `[num_blocks, block_size, num_heads, head_size]`; block, token and head
    strides are free, the last dim is contiguous, and both planes have equal strides. Layouts differ in
    strides alone. Semantics: docs/semantics.md.
    """

    name = "reshape_and_cache_flash"
    layouts = ("NHD", "HND")

    def check(self, case: Case, item_bytes: int) -> None:
        """See `op.Op.check`."""
        if case.layout not in self.layouts:
            raise Unsupported(
                f"op={self.name} writes the layouts {', '.join(self.layouts)}, not {case.layout}"
            )
        if case.head_size_v != case.head_size:
            raise Unsupported(
                f"op={self.name} writes K and V of one head size, not {case.head_size} and {case.head_size_v}"
            )
        if case.kv_cache_dtype != "auto" and case.head_size % 16:
            raise Unsupported(
                f"head_size {case.head_size} is not a multiple of 16, "
                f"which kv_cache_dtype={case.kv_cache_dtype} needs"
            )

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """K and V rows and the slots are read, K and V rows are written."""
        items = case.num_tokens * case.num_heads * (case.head_size + case.head_size_v)
        slots = 8 * case.num_tokens
        return items * item_bytes + slots, items * cache_item_bytes(case.kv_cache_dtype, item_bytes)

    def bind(self, impl: Any, tensors: Any, slot_mapping: Any) -> Call:
        """See `op.Op.bind`."""
        method = getattr(impl, self.name, None)
        if method is None:
            raise Unsupported(f"impl={impl.name} has no {self.name}")
        call: Call = method(
            tensors.key,
            tensors.value,
            tensors.key_cache,
            tensors.value_cache,
            slot_mapping,
            tensors.kv_cache_dtype,
            tensors.k_scale,
            tensors.v_scale,
        )
        return call
