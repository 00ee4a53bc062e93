"""NHD: `[num_blocks, 2, block_size, num_heads, head_size]`; a token's heads are adjacent."""

from kvexp.case import Case
from kvexp.layout import Plane, Planes, gather_rows, scatter_rows


class NHD:
    """The layout of vLLM's benchmark and tests: K's plane of a block, then V's; tokens outside heads."""

    name = "NHD"
    gather = staticmethod(gather_rows)
    scatter = staticmethod(scatter_rows)

    def planes(self, case: Case, item_bytes: int) -> Planes:
        """See `layout.Layout.planes`."""
        row = case.num_heads * case.head_size
        plane = case.block_size * row
        shape = (case.num_blocks, case.block_size, case.num_heads, case.head_size)
        strides = (2 * plane, row, case.head_size, 1)
        return Planes(
            key=Plane(shape, strides, 0),
            value=Plane(shape, strides, plane),
            items=2 * plane * case.num_blocks,
        )
