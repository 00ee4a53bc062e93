"""LHBNC: `[num_layers, num_heads, num_blocks, block_size, head_size + head_size_v]`; blocks inside heads."""

from kvexp.layout import Planes, Shape, Sizes, gather_rows, scatter_rows
from kvexp.layout.packed import strided_planes, width


class LHBNC:
    """vLLM's layout in which each head of a layer has all of its blocks in one run.

    The name gives the dims, the outermost first: layer, head, block, slot (N), content (C, K then V). Layers
    share no block, and the distance from head to head grows with the number of blocks.
    """

    name = "LHBNC"
    shape: Shape = "flash"
    packed = True
    stride_order = (2, 0, 1, 3)
    gather = staticmethod(gather_rows)
    scatter = staticmethod(scatter_rows)

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`."""
        block_items = sizes.block_size * width(sizes)
        head_items = sizes.num_blocks * block_items
        strides = (block_items, width(sizes), head_items)
        return strided_planes(sizes, strides, layer * sizes.num_heads * head_items)
