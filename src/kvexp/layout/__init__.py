"""Say where a slot's row lives in the cache.

Imports nothing of kvexp but errors.

A layout turns the cache's sizes into two planes (K and V) inside one flat storage, and reads or writes the
rows of given slots in a plane. `slot = block * block_size + block_offset`.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Shape = Literal["flash", "head_major", "mla", "indexer"]


class Sizes(Protocol):
    """The sizes of a cache, as a Case has them."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache."""

    @property
    def block_size(self) -> int:
        """Slots of a block."""

    @property
    def num_heads(self) -> int:
        """KV heads of a token."""

    @property
    def head_size(self) -> int:
        """Elements of a key head."""

    @property
    def head_size_v(self) -> int:
        """Elements of a value head."""

    @property
    def num_layers(self) -> int:
        """Layers whose caches share the storage."""


@dataclass(frozen=True)
class Plane:
    """One plane of a cache as a strided view of its storage; all in items.

    Attributes:
        shape: The shape that the ops take.
        strides: Items from one index to the next in each dim.
        offset: Items from the start of the storage to the first item.
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
        packed: K and V as one plane: K then V in the last dim, or in each block; None where they are
            separate.
        others: Further planes that are made of K or of V, such as their scales.
    """

    key: Plane
    value: Plane
    items: int
    packed: Plane | None = None
    others: tuple[Plane, ...] = ()

    @property
    def parts(self) -> tuple[Plane, ...]:
        """All planes that hold items: K's, V's, and the others."""
        return (self.key, self.value, *self.others)


class Layout(Protocol):
    """The contract of a layout.

    Attributes:
        name: Its name in the configuration.
        shape: The shape of its planes. `flash` is `[num_blocks, block_size, num_heads, head_size]` with a
            contiguous last dim and any other strides; `head_major` is what `op.reshape_and_cache` takes;
            `mla` is `[num_blocks, block_size, head_size]`, likewise; `indexer` too, and both planes together
            are each block as one run.
        slot_dim: The dim of a plane that counts the slots of a block.
        has_whole_heads: The items of a head are adjacent in every plane.
        has_heads: Planes have a dim of heads; without one there is one head.
    """

    name: str
    shape: Shape
    slot_dim: int
    has_whole_heads: bool
    has_heads: bool

    @property
    def packed(self) -> bool:
        """Say whether K and V of a head are adjacent, so that both form one plane as well."""

    @property
    def stride_order(self) -> tuple[int, ...] | None:
        """The dims of the logical shape in the order of memory, the outermost first.

        The shape is `[num_blocks, 2, block_size, num_heads, head_size]`, or where packed
        `[num_blocks, block_size, num_heads, head_size + head_size_v]`. None where there is no such shape.
        """

    def head_multiple(self, item_bytes: int) -> int:
        """Return the elements of which a key head must have a whole multiple."""

    def planes(self, sizes: Sizes, item_bytes: int, layer: int = 0) -> Planes:
        """Return the planes of one layer in a cache of these sizes and of items of `item_bytes` bytes."""

    def gather(self, plane: Any, slots: Any) -> Any:
        """Return a copy of the rows of `slots` (int64 `[n]`, all valid), `[n, num_heads, head_size]`.

        A plane of the shape `flash` may hold words of several items each; its last dim is then shorter.
        """

    def scatter(self, plane: Any, slots: Any, rows: Any) -> None:
        """Write rows (broadcast to `[n, num_heads, head_size]`) to `slots` (int64 `[n]`, all valid)."""


def view_layers(layout: Layout, sizes: Sizes, item_bytes: int) -> Plane:
    """Return the planes of all layers of a flash cache as one.

    Its shape is `[num_layers, planes, num_blocks, block_size, num_heads, width]`: one plane of K, then V,
    where they are packed, else two.
    """
    first, second = (layout.planes(sizes, item_bytes, layer) for layer in (0, 1))
    plane = first.packed or first.key
    next_layer = (second.packed or second.key).offset - plane.offset
    next_plane = 0 if first.packed else first.value.offset - plane.offset
    return Plane(
        shape=(sizes.num_layers, 1 if first.packed else 2, *plane.shape),
        strides=(next_layer, next_plane, *plane.strides),
        offset=plane.offset,
    )


@functools.cache
def load_layouts() -> Mapping[str, Layout]:
    """Return the layouts of this package by name."""
    files = [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    found: list[Any] = [made for file in files for made in vars(file).values() if isinstance(made, type)]
    return {made.name: made() for made in found if isinstance(vars(made).get("name"), str)}
