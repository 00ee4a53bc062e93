"""Lay out two contiguous caches, K of all blocks, then V; in a block heads are outside tokens.

key `[num_blocks, num_heads, head_size / x, block_size, x]`, value `[num_blocks, num_heads, head_size,
block_size]`; x is the number of items in 16 bytes.
"""

import math
from typing import Any

from kvexp.layout import Plane, Planes, Shape, Sizes

PIECE_BYTES = 16


class HeadMajor:
    """The caches of vLLM's first paged attention as engines allocate them, for `op.reshape_and_cache`.

    Layers share no block: K and V of the first layer, then K and V of the next.
    """

    name = "head_major"
    shape: Shape = "head_major"
    slot_dim = 3
    has_whole_heads = False
    has_heads = True
    packed = False
    stride_order = None

    def head_multiple(self, item_bytes: int) -> int:
        """See `layout.Layout.head_multiple`."""
        return PIECE_BYTES // item_bytes

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`; items of a key head beyond its last whole 16 bytes are left out."""
        x = PIECE_BYTES // item_bytes
        blocks, heads, size = sizes.num_blocks, sizes.num_heads, sizes.block_size
        key_shape = (blocks, heads, sizes.head_size // x, size, x)
        value_shape = (blocks, heads, sizes.head_size_v, size)
        key_items, value_items = math.prod(key_shape), math.prod(value_shape)
        first = layer * (key_items + value_items)
        return Planes(
            key=_contiguous(key_shape, first),
            value=_contiguous(value_shape, first + key_items),
            items=sizes.num_layers * (key_items + value_items),
        )

    def gather(self, plane: Any, slots: Any) -> Any:
        """See `layout.Layout.gather`."""
        block, offset = self._split(plane, slots)
        # Indices that are not adjacent put their dim first: [n, num_heads, pieces, x], or without pieces.
        rows = plane[block, :, :, offset]
        return rows.flatten(2).contiguous()

    def scatter(self, plane: Any, slots: Any, rows: Any) -> None:
        """See `layout.Layout.scatter`."""
        block, offset = self._split(plane, slots)
        if hasattr(rows, "reshape") and plane.dim() == 5:
            rows = rows.reshape(*rows.shape[:-1], *plane.shape[2::2])
        plane[block, :, :, offset] = rows

    @staticmethod
    def _split(plane: Any, slots: Any) -> tuple[Any, Any]:
        """Return the block of each slot and its offset there."""
        block_size = plane.shape[3]
        return slots // block_size, slots % block_size


def _contiguous(shape: tuple[int, ...], offset: int) -> Plane:
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    return Plane(shape, tuple(strides), offset)
