"""What must be written: one file per op.

An op says which layouts it writes, which bytes one call must move, and how an implementation is bound to
the tensors of a case. What the written bytes are follows from the layout (where a slot's row lives) and
from `quantize` (how a row becomes bytes).
"""

from collections.abc import Callable
from typing import Any, Protocol

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout

Call = Callable[[], None]
"""A bound call: everything is set up, it takes and returns nothing."""

FP8 = ("fp8_e4m3", "fp8_e5m2")
"""The 8-bit floats: formats of a cache, and types of keys and values."""


class Op(Protocol):
    """The contract of an op."""

    name: str

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """Returns when the op is defined for the case.

        Args:
            case: The point; its `num_tokens` may be any of the curve's.
            layout: The case's layout.
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


def rows_and_slots(case: Case, item_bytes: int) -> tuple[int, int]:
    """`Op.bytes_moved` of every op: K and V rows and the slots are read, K and V rows are written.

    A padding token's slot is read, its rows are not.
    """
    items = case.written_tokens * case.num_heads * (case.head_size + case.head_size_v)
    slots = 8 * case.num_tokens
    return items * item_bytes + slots, items * cache_item_bytes(case.kv_cache_dtype, item_bytes)


def check_types(case: Case) -> None:
    """Returns when rows of the case's dtype can be in a cache of its kv_cache_dtype.

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
    """Returns when K and V have heads of one size.

    Raises:
        Unsupported: They have two.
    """
    if case.head_size_v != case.head_size:
        raise Unsupported(
            f"op={op} writes K and V of one head size, not {case.head_size} and {case.head_size_v}"
        )


def method_of(impl: Any, op: str) -> Callable[..., Call]:
    """The implementation's method for the op.

    Raises:
        Unsupported: It has none.
    """
    method: Callable[..., Call] | None = getattr(impl, op, None)
    if method is None:
        raise Unsupported(f"impl={impl.name} has no {op}")
    return method
