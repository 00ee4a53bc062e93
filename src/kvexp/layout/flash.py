"""Lay out caches of FlashAttention's logical shape, `[num_blocks, block_size, num_heads, head_size]`.

Such layouts differ in strides alone. Each names the dims of the whole cache, the outermost first; `kv` is K,
then V, and the items of a head are innermost.
"""

from collections.abc import Sequence
from typing import Any

from kvexp.layout import Plane, Planes, Shape, Sizes

LOGICAL = ("block", "kv", "token", "head")


class Flash:
    """Planes whose strides follow from `order`; where `kv` is last in it, K and V of a head are adjacent."""

    name: str
    order: tuple[str, ...]
    shape: Shape = "flash"
    slot_dim = 1
    has_whole_heads = True
    has_heads = True

    @property
    def packed(self) -> bool:
        """See `layout.Layout`."""
        return self.order[-1] == "kv"

    @property
    def stride_order(self) -> tuple[int, ...] | None:
        """See `layout.Layout`; the dims of one layer."""
        logical = [dim for dim in LOGICAL if not (dim == "kv" and self.packed)]
        return (*(logical.index(dim) for dim in self.order if dim in logical), len(logical))

    def head_multiple(self, item_bytes: int) -> int:
        """See `layout.Layout.head_multiple`."""
        return 1

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """See `layout.Layout.planes`."""
        widths = sizes.head_size, sizes.head_size_v
        key, value = self.split(sizes, widths, layer)
        slots = sizes.num_blocks * sizes.block_size
        return Planes(
            key=key,
            value=value,
            items=slots * sizes.num_layers * sizes.num_heads * sum(widths),
            packed=self.split(sizes, (sum(widths),), layer)[0] if self.packed else None,
        )

    def split(self, sizes: Sizes, widths: Sequence[int], layer: int = 0) -> list[Plane]:
        """Return planes of heads of these widths, which follow one another where `kv` is in the order.

        The widths are in items, and take the place of the sizes of heads.
        """
        counts = {
            "layer": sizes.num_layers,
            "block": sizes.num_blocks,
            "token": sizes.block_size,
            "head": sizes.num_heads,
        }

        def plane(width: int, before: int) -> Plane:
            """Return the plane of heads of that width, which follow `before` items for each head."""
            strides, offset, heads, size = {}, 0, 1, width
            for dim in reversed(self.order):
                if dim == "kv":
                    offset, size = heads * before, sum(widths)
                else:
                    strides[dim] = heads * size
                    heads *= counts[dim]
            dims = ("block", "token", "head")
            return Plane(
                shape=(*(counts[dim] for dim in dims), width),
                strides=(*(strides[dim] for dim in dims), 1),
                offset=layer * strides["layer"] + offset,
            )

        return [plane(width, sum(widths[:place])) for place, width in enumerate(widths)]

    def gather(self, plane: Any, slots: Any) -> Any:
        """See `layout.Layout.gather`."""
        block_size = plane.shape[1]
        return plane[slots // block_size, slots % block_size]

    def scatter(self, plane: Any, slots: Any, rows: Any) -> None:
        """See `layout.Layout.scatter`."""
        block_size = plane.shape[1]
        plane[slots // block_size, slots % block_size] = rows


class NHD(Flash):
    """The layout of vLLM's benchmark and tests: K's plane of a block, then V's; tokens outside heads."""

    name = "NHD"
    order = ("block", "layer", "kv", "token", "head")


class HND(Flash):
    """The layout for KV transfer: heads outside tokens, so that ranks exchange few large pieces."""

    name = "HND"
    order = ("block", "layer", "kv", "head", "token")


class NHDPacked(Flash):
    """What vLLM 0.33's FlashAttention and FlashInfer backends allocate, and what the diffkv op writes."""

    name = "NHD_packed"
    order = ("block", "layer", "token", "head", "kv")


class HNDPacked(Flash):
    """NHD_packed with heads outside tokens, for KV transfer."""

    name = "HND_packed"
    order = ("block", "layer", "head", "token", "kv")


class BHLNC(Flash):
    """vLLM's layout in which a head of a block is one run over all layers.

    The name gives the dims: block, head, layer, slot (N), content (C, K then V). With one layer it is
    HND_packed.
    """

    name = "BHLNC"
    order = ("block", "head", "layer", "token", "kv")


class LHBNC(Flash):
    """vLLM's layout in which each head of a layer has all of its blocks in one run.

    The name gives the dims: layer, head, block, slot (N), content (C, K then V). Layers share no block, and
    the distance from head to head grows with the number of blocks.
    """

    name = "LHBNC"
    order = ("layer", "head", "block", "token", "kv")
