"""NHD_packed: `[num_blocks, block_size, num_heads, head_size + head_size_v]`; K and V side by side."""

from kvexp.layout import Planes, Shape, Sizes, gather_rows, scatter_rows
from kvexp.layout.packed import packed_planes


class NHDPacked:
    """What vLLM 0.33's FlashAttention and FlashInfer backends allocate, and what the diffkv op writes."""

    name = "NHD_packed"
    shape: Shape = "flash"
    packed = True
    stride_order = (0, 1, 2, 3)
    gather = staticmethod(gather_rows)
    scatter = staticmethod(scatter_rows)

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`."""
        width = sizes.head_size + sizes.head_size_v
        return packed_planes(sizes, layer, token_stride=sizes.num_heads * width, head_stride=width)
