"""HND: `[num_blocks, 2, num_heads, block_size, head_size]`; a head's block is one contiguous run."""

from kvexp.layout import Plane, Planes, Shape, Sizes, gather_rows, in_blocks, scatter_rows


class HND:
    """The layout that KV transfer wants: heads outside tokens, so that ranks exchange few large pieces."""

    name = "HND"
    shape: Shape = "flash"
    packed = False
    stride_order = (0, 1, 3, 2, 4)
    gather = staticmethod(gather_rows)
    scatter = staticmethod(scatter_rows)

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`."""
        key_items = sizes.num_heads * sizes.block_size * sizes.head_size
        block_items = key_items + sizes.num_heads * sizes.block_size * sizes.head_size_v
        return Planes(
            key=in_blocks(sizes, layer, block_items, self._plane(sizes, sizes.head_size, 0)),
            value=in_blocks(sizes, layer, block_items, self._plane(sizes, sizes.head_size_v, key_items)),
            items=sizes.num_blocks * sizes.num_layers * block_items,
        )

    def _plane(self, sizes: Sizes, head_size: int, offset: int) -> Plane:
        shape = (sizes.block_size, sizes.num_heads, head_size)
        return Plane(shape, (head_size, sizes.block_size * head_size, 1), offset)
