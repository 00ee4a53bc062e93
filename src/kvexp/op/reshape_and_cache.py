"""reshape_and_cache: write K and V of each token to the head-major planes of vLLM's first paged attention."""

from typing import Any

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout
from kvexp.op import Call, cache_item_bytes, check_equal_heads, check_types, count_bytes, get_method


class ReshapeAndCache:
    """`key_cache[block, head, i // x, offset, i % x] = key[token, head, i]`; V at `[block, head, i, offset]`.

    key `[num_blocks, num_heads, head_size / x, block_size, x]`, value `[num_blocks, num_heads, head_size,
    block_size]`, x the items in 16 bytes. The stride from block to block is free; each block is contiguous.
    Semantics: docs/semantics.md.
    """

    name = "reshape_and_cache"
    bytes_moved = staticmethod(count_bytes)

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        if layout.shape != "head_major":
            raise Unsupported(
                f"op={self.name} writes head-major planes, which layout={layout.name} does not have; "
                "try layout=head_major"
            )
        check_equal_heads(self.name, case)
        check_types(case)
        x = 16 // cache_item_bytes(case.kv_cache_dtype, item_bytes)
        if case.head_size % x:
            raise Unsupported(
                f"head_size {case.head_size} is not a multiple of {x}, the cache items of 16 bytes, which "
                f"op={self.name} needs"
            )

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
