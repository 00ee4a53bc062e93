"""BHLNC: `[num_blocks, num_heads, num_layers, block_size, head_size + head_size_v]`; layers inside heads."""

from kvexp.layout import Planes, Shape, Sizes, gather_rows, scatter_rows
from kvexp.layout.packed import strided_planes, width


class BHLNC:
    """vLLM's layout in which a head of a block is one run over all layers.

    The name gives the dims, the outermost first: block, head, layer, slot (N), content (C, K then V). With
    one layer it is HND_packed.
    """

    name = "BHLNC"
    shape: Shape = "flash"
    packed = True
    stride_order = (0, 2, 1, 3)
    gather = staticmethod(gather_rows)
    scatter = staticmethod(scatter_rows)

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`."""
        layer_items = sizes.block_size * width(sizes)
        head_items = sizes.num_layers * layer_items
        strides = (sizes.num_heads * head_items, width(sizes), head_items)
        return strided_planes(sizes, strides, layer * layer_items)
