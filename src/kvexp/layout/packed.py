"""What the packed layouts share: K, V, and both as one plane, of one set of strides."""

from kvexp.layout import Plane, Planes, Sizes


def packed_planes(sizes: Sizes, layer: int, token_stride: int, head_stride: int) -> Planes:
    """Return the planes of a cache whose blocks hold one layer whole, then the next.

    Args:
        sizes: The cache's sizes.
        layer: Whose planes.
        token_stride: Items from one slot of a block to the next.
        head_stride: Items from one head to the next.
    """
    block_items = sizes.block_size * sizes.num_heads * width(sizes)
    strides = (sizes.num_layers * block_items, token_stride, head_stride)
    return strided_planes(sizes, strides, layer * block_items)


def strided_planes(sizes: Sizes, strides: tuple[int, int, int], offset: int) -> Planes:
    """Return the planes of a cache whose heads hold K, then V.

    Args:
        sizes: The cache's sizes.
        strides: Items from one block, one slot of a block and one head to the next.
        offset: The item at which the layer begins.
    """

    def plane(head_size: int, at: int) -> Plane:
        shape = (sizes.num_blocks, sizes.block_size, sizes.num_heads, head_size)
        return Plane(shape, (*strides, 1), offset + at)

    slots = sizes.num_blocks * sizes.block_size
    return Planes(
        key=plane(sizes.head_size, 0),
        value=plane(sizes.head_size_v, sizes.head_size),
        items=slots * sizes.num_layers * sizes.num_heads * width(sizes),
        packed=plane(width(sizes), 0),
    )


def width(sizes: Sizes) -> int:
    """Return the items of a head: K, then V."""
    return sizes.head_size + sizes.head_size_v
