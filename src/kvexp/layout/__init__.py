"""Where a slot's row lives in the cache: one file per layout.

A layout turns the cache's sizes into two planes (K and V) inside one flat storage, and reads or writes the
rows of given slots in a plane. `slot = block * block_size + block_offset`.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Shape = Literal["flash", "head_major"]


class Sizes(Protocol):
    """The sizes of a cache; a Case has them."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache."""
        ...

    @property
    def block_size(self) -> int:
        """Slots of a block."""
        ...

    @property
    def num_heads(self) -> int:
        """KV heads of a token."""
        ...

    @property
    def head_size(self) -> int:
        """Elements of a key head."""
        ...

    @property
    def head_size_v(self) -> int:
        """Elements of a value head."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers whose caches share the storage."""
        ...


@dataclass(frozen=True)
class Plane:
    """One plane of a cache as a strided view of its storage; all in items.

    Attributes:
        shape: The shape that the ops take.
        strides: Items from one index to the next in each dim.
        offset: The first item's place in the storage.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Planes:
    """K and V of one layer of a cache, and the items of the storage that holds all layers.

    Attributes:
        key: K's plane.
        value: V's plane.
        items: Items of the storage.
        packed: K and V as one plane, K then V in the last dim; None where they are apart.
    """

    key: Plane
    value: Plane
    items: int
    packed: Plane | None = None


class Layout(Protocol):
    """The contract of a layout.

    Attributes:
        name: Its word in the configuration.
        shape: The shape of its planes: `flash` is `[num_blocks, block_size, num_heads, head_size]` with any
            strides but that of the last dim, whose items are adjacent; `head_major` is what
            `op.reshape_and_cache` takes.
        packed: K and V of a head lie side by side, so that both are one plane as well.
        stride_order: The dims of the logical shape in the order in which they lie in memory, the outermost
            first; the shape is `[num_blocks, 2, block_size, num_heads, head_size]`, or packed
            `[num_blocks, block_size, num_heads, head_size + head_size_v]`. None where there is no such shape.
    """

    name: str
    shape: Shape
    packed: bool
    stride_order: tuple[int, ...] | None

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """The planes of one layer in a cache of these sizes whose items have `item_bytes` bytes."""
        ...

    def gather(self, plane: Any, slots: Any) -> Any:
        """A copy of the rows of `slots` (int64 `[n]`, all valid), `[n, num_heads, head_size]`.

        A plane of the shape `flash` may hold words of several items each: its last dim is as much shorter.
        """
        ...

    def scatter(self, plane: Any, slots: Any, rows: Any) -> None:
        """Rows (broadcast to `[n, num_heads, head_size]`) are in `slots` (int64 `[n]`, all valid)."""
        ...


def in_blocks(sizes: Sizes, layer: int, block_items: int, plane: Plane) -> Plane:
    """The plane of a whole cache from that of one block.

    Args:
        sizes: The cache's sizes; each block holds all layers, one after the other.
        layer: Whose plane.
        block_items: Items of one layer in one block.
        plane: The plane inside such a block, without the dim of blocks.
    """
    return Plane(
        shape=(sizes.num_blocks, *plane.shape),
        strides=(sizes.num_layers * block_items, *plane.strides),
        offset=layer * block_items + plane.offset,
    )


def gather_rows(plane: Any, slots: Any) -> Any:
    """`Layout.gather` for planes of the shape `flash`."""
    block_size = plane.shape[1]
    return plane[slots // block_size, slots % block_size]


def scatter_rows(plane: Any, slots: Any, rows: Any) -> None:
    """`Layout.scatter` for planes of the shape `flash`."""
    block_size = plane.shape[1]
    plane[slots // block_size, slots % block_size] = rows
