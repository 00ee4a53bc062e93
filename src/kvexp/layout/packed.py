"""What the packed layouts share: K, V, and both as one plane, of one set of strides."""

from kvexp.layout import Plane, Planes, Sizes, in_blocks


def packed_planes(sizes: Sizes, layer: int, token_stride: int, head_stride: int) -> Planes:
    """The planes of a cache whose heads hold K, then V, with these strides in items."""
    width = sizes.head_size + sizes.head_size_v
    block_items = sizes.block_size * sizes.num_heads * width

    def plane(head_size: int, offset: int) -> Plane:
        shape = (sizes.block_size, sizes.num_heads, head_size)
        return in_blocks(sizes, layer, block_items, Plane(shape, (token_stride, head_stride, 1), offset))

    return Planes(
        key=plane(sizes.head_size, 0),
        value=plane(sizes.head_size_v, sizes.head_size),
        items=sizes.num_blocks * sizes.num_layers * block_items,
        packed=plane(width, 0),
    )
