"""Define the ops: one file each.

Imports nothing of kvexp but case, errors and layout.

An op says which layouts it writes, which bytes one call must move, and how an implementation is bound to
the tensors of a case. The written bytes follow from the layout (where a slot's row lives) and from `quantize`
(how a row becomes bytes).
"""

from collections.abc import Callable
from typing import Any, Protocol

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout

Call = Callable[[], None]
"""A bound call: it is fully set up, takes no arguments and returns nothing."""

FP8 = ("fp8_e4m3", "fp8_e5m2")
"""The 8-bit floats, both as formats of a cache and as types of keys and values."""


class Op(Protocol):
    """The contract of an op."""

    name: str

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """Check that the op is defined for the case.

        Args:
            case: Any point of the curve.
            layout: The case's layout.
            item_bytes: Bytes of one source item.

        Raises:
            Unsupported: The combination has no meaning; the message says why.
        """
        ...

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """Return the bytes that one call must read and the bytes that it must write, each once."""
        ...

    def bind(self, impl: Any, tensors: Any, slot_mapping: Any) -> Call:
        """Bind the implementation's call to these tensors.

        Args:
            impl: An implementation with a method of the op's name.
            tensors: A `workload.Tensors`.
            slot_mapping: int64 `[num_tokens]`.

        Raises:
            Unsupported: The implementation lacks the op, or refuses the tensors.
        """
        ...


def cache_item_bytes(kv_cache_dtype: str, item_bytes: int) -> int:
    """Return the bytes of one cache item: the source's for `auto`, one for the fp8 formats."""
    return item_bytes if kv_cache_dtype == "auto" else 1


def count_bytes(case: Case, item_bytes: int) -> tuple[int, int]:
    """Return the bytes that a call must read (rows of K and V, slots) and write (rows of K and V).

    Of a padding token the slot is read, but not the rows.
    """
    items = case.written_tokens * case.num_heads * (case.head_size + case.head_size_v)
    slots = 8 * case.num_tokens
    return items * item_bytes + slots, items * cache_item_bytes(case.kv_cache_dtype, item_bytes)


def check_types(case: Case) -> None:
    """Check that rows of the case's dtype can be stored in a cache of its kv_cache_dtype.

    Raises:
        Unsupported: They cannot, or the scale has no meaning.
    """
    if case.dtype in FP8 and case.kv_cache_dtype != case.dtype:
        raise Unsupported(
            f"dtype={case.dtype} goes into a cache of its own kind, kv_cache_dtype={case.dtype}, "
            f"not {case.kv_cache_dtype}"
        )
    if case.kv_cache_dtype == "auto" and case.scale != "per_tensor":
        raise Unsupported(f"kv_cache_dtype=auto reads no scale, so scale={case.scale} has no meaning")
    if case.dtype in FP8 and case.scale != "per_tensor":
        raise Unsupported(f"dtype={case.dtype} is stored unscaled, so scale={case.scale} has no meaning")


def check_equal_heads(op: str, case: Case) -> None:
    """Check that K and V have heads of one size.

    Raises:
        Unsupported: The sizes differ.
    """
    if case.head_size_v != case.head_size:
        raise Unsupported(
            f"op={op} writes K and V of one head size, not {case.head_size} and {case.head_size_v}"
        )


def get_method(impl: Any, op: str) -> Callable[..., Call]:
    """Return the implementation's method for the op.

    Raises:
        Unsupported: It has none.
    """
    method: Callable[..., Call] | None = getattr(impl, op, None)
    if method is None:
        raise Unsupported(f"impl={impl.name} has no {op}")
    return method
