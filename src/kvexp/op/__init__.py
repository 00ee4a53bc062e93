"""What must be written: one file per op.

An op says which layouts it writes, which bytes one call must move, and how an implementation is bound to
the tensors of a case. What the written bytes are follows from the layout (where a slot's row lives) and
from `quantize` (how a row becomes bytes).
"""

from collections.abc import Callable
from typing import Any, Protocol

from kvexp.case import Case

Call = Callable[[], None]
"""A bound call: everything is set up, it takes and returns nothing."""


class Op(Protocol):
    """The contract of an op."""

    name: str

    def check(self, case: Case, item_bytes: int) -> None:
        """Returns when the op is defined for the case.

        Args:
            case: The point; its `num_tokens` may be any of the curve's.
            item_bytes: Bytes of one source item.

        Raises:
            Unsupported: The combination has no meaning; the message says why.
        """
        ...

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """Bytes that one call must read and bytes that it must write, each once."""
        ...

    def bind(self, impl: Any, tensors: Any, slot_mapping: Any) -> Call:
        """The implementation's call for these tensors.

        Args:
            impl: An implementation with a method of the op's name.
            tensors: A `workload.Tensors`.
            slot_mapping: int64 `[num_tokens]`.

        Raises:
            Unsupported: The implementation lacks the op, or refuses the tensors.
        """
        ...


def cache_item_bytes(kv_cache_dtype: str, item_bytes: int) -> int:
    """Bytes of one cache item: the source's for `auto`, one for the fp8 formats."""
    return item_bytes if kv_cache_dtype == "auto" else 1
