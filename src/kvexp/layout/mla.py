"""Lay out the cache of multi-head latent attention: rows without heads, kv_c and k_pe side by side.

The cache is `[num_blocks, block_size, head_size + head_size_v]`: head_size elements of kv_c, head_size_v of
k_pe.
"""

from dataclasses import replace
from typing import Any

from kvexp.layout import Plane, Planes, Shape, Sizes
from kvexp.layout.flash import Flash


class Mla(Flash):
    """The bytes of NHD_packed with one head, without the dim of heads; layers share each block."""

    name = "mla"
    order = ("block", "layer", "token", "head", "kv")
    shape: Shape = "mla"
    has_heads = False

    @property
    def stride_order(self) -> tuple[int, ...] | None:
        """See `layout.Layout`; of `[num_blocks, block_size, head_size + head_size_v]`."""
        return (0, 1, 2)

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`."""
        found = super().planes(sizes, item_bytes, layer)
        packed = found.packed and _drop_heads(found.packed)
        return replace(found, key=_drop_heads(found.key), value=_drop_heads(found.value), packed=packed)

    def gather(self, plane: Any, slots: Any) -> Any:
        """See `layout.Layout.gather`."""
        return super().gather(plane, slots).unsqueeze(1)

    def scatter(self, plane: Any, slots: Any, rows: Any) -> None:
        """See `layout.Layout.scatter`."""
        super().scatter(plane, slots, rows.squeeze(1) if hasattr(rows, "squeeze") else rows)


def _drop_heads(plane: Plane) -> Plane:
    (blocks, tokens, _, width), (block, token, _, item) = plane.shape, plane.strides
    return Plane((blocks, tokens, width), (block, token, item), plane.offset)
