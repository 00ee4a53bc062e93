"""head_major: heads outside, tokens inside them; K's elements in pieces of 16 bytes, V's one by one.

key `[num_blocks, num_heads, head_size / x, block_size, x]`, value `[num_blocks, num_heads, head_size,
block_size]`; x is the items of 16 bytes.
"""

from typing import Any

from kvexp.layout import Plane, Planes, Shape, Sizes, in_blocks

PIECE_BYTES = 16


class HeadMajor:
    """The cache of vLLM's first paged attention; what `op.reshape_and_cache` writes. A block: K, then V."""

    name = "head_major"
    shape: Shape = "head_major"
    packed = False
    stride_order = None

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`; what a last piece of K lacks, where x does not divide, is not there."""
        x = PIECE_BYTES // item_bytes
        size, pieces = sizes.block_size, sizes.head_size // x
        key_items = sizes.num_heads * pieces * size * x
        block_items = key_items + sizes.num_heads * sizes.head_size_v * size
        key = Plane((sizes.num_heads, pieces, size, x), (pieces * size * x, size * x, x, 1), 0)
        value_shape = (sizes.num_heads, sizes.head_size_v, size)
        value = Plane(value_shape, (sizes.head_size_v * size, size, 1), key_items)
        return Planes(
            key=in_blocks(sizes, layer, block_items, key),
            value=in_blocks(sizes, layer, block_items, value),
            items=sizes.num_blocks * sizes.num_layers * block_items,
        )

    def gather(self, plane: Any, slots: Any) -> Any:
        """See `layout.Layout.gather`."""
        block, offset = self._places(plane, slots)
        # An index apart from the other goes first: [n, num_heads, pieces, x] or [n, num_heads, head_size].
        rows = plane[block, :, :, offset]
        return rows.flatten(2).contiguous()

    def scatter(self, plane: Any, slots: Any, rows: Any) -> None:
        """See `layout.Layout.scatter`."""
        block, offset = self._places(plane, slots)
        if hasattr(rows, "reshape") and plane.dim() == 5:
            rows = rows.reshape(*rows.shape[:-1], *plane.shape[2::2])
        plane[block, :, :, offset] = rows

    @staticmethod
    def _places(plane: Any, slots: Any) -> tuple[Any, Any]:
        block_size = plane.shape[3]
        return slots // block_size, slots % block_size
