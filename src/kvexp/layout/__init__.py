"""Where a slot's row lives in the cache: one file per layout.

A layout turns the cache's sizes into two planes (K and V) inside one flat storage, and reads or writes the
rows of given slots in a plane. `slot = block * block_size + block_offset`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from kvexp.case import Case


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
    """K and V of one cache and the items of the storage that holds both."""

    key: Plane
    value: Plane
    items: int


class Layout(Protocol):
    """The contract of a layout."""

    name: str

    def planes(self, case: Case, item_bytes: int) -> Planes:
        """The planes of a cache with the case's sizes and cache items of `item_bytes` bytes."""
        ...

    def gather(self, plane: Any, slots: Any) -> Any:
        """A copy of the rows of `slots` (int64 `[n]`, all valid), `[n, num_heads, head_size]`."""
        ...

    def scatter(self, plane: Any, slots: Any, rows: Any) -> None:
        """Rows (broadcast to `[n, num_heads, head_size]`) are in `slots` (int64 `[n]`, all valid)."""
        ...


def gather_rows(plane: Any, slots: Any) -> Any:
    """`Layout.gather` for planes of the logical shape `[num_blocks, block_size, num_heads, head_size]`."""
    block_size = plane.shape[1]
    return plane[slots // block_size, slots % block_size]


def scatter_rows(plane: Any, slots: Any, rows: Any) -> None:
    """`Layout.scatter` for planes of the logical shape `[num_blocks, block_size, num_heads, head_size]`."""
    block_size = plane.shape[1]
    plane[slots // block_size, slots % block_size] = rows
