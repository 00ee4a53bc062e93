"""Lay out the cache of a sparse attention's indexer: of each block all codes, then all scales.

A block is `head_size` bytes for each of its slots, then `head_size_v` bytes for each.
"""

from dataclasses import replace

from kvexp.layout import Plane, Planes, Sizes
from kvexp.layout.mla import Mla


class Indexer(Mla):
    """The bytes of NHD with one head, whose block the ops take as one run; layers share each block."""

    name = "indexer"
    order = ("block", "layer", "kv", "token", "head")
    shape = "indexer"

    @property
    def stride_order(self) -> None:
        """See `layout.Layout`; a slot's bytes are not adjacent."""
        return None

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`; `packed` is a block's bytes, `[num_blocks, block_size, both sizes]`."""
        found = super().planes(sizes, item_bytes, layer)
        width = sizes.head_size + sizes.head_size_v
        shape = (sizes.num_blocks, sizes.block_size, width)
        return replace(found, packed=Plane(shape, (found.key.strides[0], width, 1), found.key.offset))
