"""HND: `[num_blocks, 2, num_heads, block_size, head_size]`; a head's block is one contiguous run."""

from kvexp.case import Case
from kvexp.layout import Plane, Planes, gather_rows, scatter_rows


class HND:
    """The layout that KV transfer wants: heads outside tokens, so that ranks exchange few large pieces."""

    name = "HND"
    gather = staticmethod(gather_rows)
    scatter = staticmethod(scatter_rows)

    def planes(self, case: Case, item_bytes: int) -> Planes:
        """See `layout.Layout.planes`."""
        head = case.block_size * case.head_size
        plane = case.num_heads * head
        shape = (case.num_blocks, case.block_size, case.num_heads, case.head_size)
        strides = (2 * plane, case.head_size, head, 1)
        return Planes(
            key=Plane(shape, strides, 0),
            value=Plane(shape, strides, plane),
            items=2 * plane * case.num_blocks,
        )
