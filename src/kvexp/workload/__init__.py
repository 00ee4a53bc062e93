"""Build the memory of one curve and the tensors of its points: a file for each kind of op.

Imports nothing of kvexp but case, errors, layout and gpu.

The memory is allocated once per curve, for its largest `num_tokens`; a point has views of it. The calls of a
point walk through places, which they write and no two of which overlap, and through windows, which they read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from kvexp.case import Case
from kvexp.layout import Layout

GUARD_BYTES = 4096
"""Poisoned bytes before and after what calls write, which reveal a write outside it."""

TIMED, BOUND, LAST = range(3)
"""Draws of what calls read, and of their places: for timing, for binding calls, and for the last check.

A draw of a point depends on the seed alone, not on earlier draws.
"""

APART = 0x2545F491
"""Distance between the seeds of two draws; a CPU's generator uses only the lowest 32 bits."""

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types as which items are copied and compared, by item size."""


@dataclass(frozen=True)
class Part:
    """One plane that a call writes rows to, and the law of these rows.

    Attributes:
        name: The parameter of the op, for example `key_cache`.
        plane: Where they are written.
        layout: Where a slot's row lies in the plane.
        expect: Given a slice of the written rows, their expected bytes, uint8 `[n, num_heads, bytes]`.
        row_bytes: Bytes of a row while it is computed.
        find_wrong: For a law with a tolerance, given items `[m, n, num_heads, elements]` of the plane's type
            and what `expect` returned, numbers `[n, num_heads, elements]`: which items are wrong. By default
            bytes are compared.
    """

    name: str
    plane: Tensor
    layout: Layout
    expect: Callable[[slice], Tensor]
    row_bytes: int
    find_wrong: Callable[[Tensor, Tensor], Tensor] | None = None


class Tensors(Protocol):
    """The tensors of one point, an attribute for each parameter of the op but its place.

    Attributes:
        inputs: What a call reads, in words.
        places: For each mapping, the argument that says where a call writes; see `Op.place`.
    """

    inputs: str

    @property
    def memory(self) -> "Memory":
        """The curve's memory, which the tensors are views of."""
        ...

    @property
    def places(self) -> Any:
        """See the class."""
        ...

    def window(self, index: int) -> Self:
        """Return these tensors with what the calls of another window read."""
        ...

    def list_parts(self) -> Sequence[Part]:
        """List what a call of this window writes."""
        ...

    def written_slots(self, mappings: int) -> Tensor:
        """Return the slots that the calls of the first mappings write, int64 `[mappings, n]`."""
        ...

    def number(self, written: int) -> int:
        """Return the token's number of a written row."""
        ...

    def redraw(self, draw: int) -> None:
        """Change everything that a call reads in place, also where it writes.

        Args:
            draw: TIMED, BOUND or LAST; the same draw gives the same data.
        """
        ...

    def unchanged(self, others: bool = False) -> bool:
        """Return whether what calls read is as it was when last drawn.

        Args:
            others: Check the curve's other inputs as well.
        """
        ...


class Memory(Protocol):
    """The memory that a curve holds from its first point to its last.

    Attributes:
        slots: int64: the indices that calls read, which an equal copy reads too.
        far: Whether calls reach into memory that is not the device's own, which copy engines do best.
    """

    @property
    def far(self) -> bool:
        """See the class."""
        ...

    @property
    def storage(self) -> Tensor:
        """The memory that calls write, uint8, guards included."""
        ...

    @property
    def inputs(self) -> Tensor:
        """The memory that calls read, flat, without the indices."""
        ...

    @property
    def slots(self) -> Tensor:
        """See the class."""
        ...

    def fill(self) -> None:
        """Fill what calls read with the draw that calls are bound with."""
        ...

    def unchanged(self) -> bool:
        """Return whether what calls read is as it was when it was filled."""
        ...

    def build(self, case: Case, mappings: int, windows: int = 1, cold: bool = False) -> Tensors:
        """Return the tensors of one point.

        Args:
            case: The point.
            mappings: Places, no two of which overlap.
            windows: Sets of what a call reads.
            cold: Windows share nothing; else they share nearly all, and take no more of an L2 than one.
        """
        ...
