"""HND_packed: `[num_blocks, num_heads, block_size, head_size + head_size_v]`; NHD_packed, heads outside."""

from kvexp.layout import Planes, Shape, Sizes, gather_rows, scatter_rows
from kvexp.layout.packed import packed_planes


class HNDPacked:
    """NHD_packed with heads outside tokens, as KV transfer wants it."""

    name = "HND_packed"
    shape: Shape = "flash"
    packed = True
    stride_order = (0, 2, 1, 3)
    gather = staticmethod(gather_rows)
    scatter = staticmethod(scatter_rows)

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`."""
        width = sizes.head_size + sizes.head_size_v
        return packed_planes(sizes, layer, token_stride=width, head_stride=sizes.block_size * width)
