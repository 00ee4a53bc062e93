"""What the ops that write keys and values of tokens to their slots in a paged cache have in common."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kvexp.case import SLOTS, Case, parse_batch
from kvexp.errors import Unsupported
from kvexp.layout import Layout, Planes, Sizes
from kvexp.op import FP8, Op, ValidCall

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kvexp.workload import Memory


class CacheWrite(Op):
    """An op whose parameters are the rows that it reads, caches, slot_mapping, scales and words.

    Attributes:
        sources: Types of the rows that it takes.
        parts: Names of what a slot holds in each plane, by default of K and of V.
        made_of: Which rows these are made of: `key` or `value`.
        largest_quotient: In an experiment a scale is the largest magnitude of its rows over this number.
        has_head_scales: Whether a scale may be one for each head.
        sample_sizes: Sizes of a call that the op takes, as an example.
    """

    reads: tuple[str, ...] = ("key", "value")
    scales: tuple[str, ...] = ("k_scale", "v_scale")
    sources: tuple[str, ...] = ("half", "bfloat16", "float", *FP8)
    parts: tuple[str, ...] = ("key_cache", "value_cache")
    made_of: tuple[str, ...] = ("key", "value")
    largest_quotient: float = 64.0
    has_head_scales: bool = True
    sample_sizes: Mapping[str, int] = MappingProxyType({"num_heads": 8, "head_size": 128, "head_size_v": 128})
    place = "slot_mapping"
    deed = "write a step of {num_tokens:,} tokens"
    role = "write"
    in_library = True
    poses_clauses = True

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        self.check_layout(layout)
        if self.equal_heads and case.head_size_v != case.head_size:
            raise Unsupported(
                f"op={self.name} writes K and V of one head size, not {case.head_size} and {case.head_size_v}"
            )
        if case.dtype not in self.sources:
            raise Unsupported(f"op={self.name} takes {' or '.join(self.sources)}, not dtype={case.dtype}")
        check_types(self, case)
        if case.scale == "per_head" and not self.has_head_scales:
            raise Unsupported(f"op={self.name} has one scale for all heads, not scale={case.scale}")

    def check_layout(self, layout: Layout) -> None:
        """Check that the layout has the planes that the op writes.

        Raises:
            Unsupported: It has others.
        """
        raise NotImplementedError

    def check_caches(self, kv_cache_dtype: str, rows: "Sequence[Tensor]", *caches: "Tensor") -> int:
        """Check that `writes` fit the format and valid rows of `reads`; return the number of slots.

        Raises:
            ValueError: They do not.
        """
        raise NotImplementedError

    def check_rows(self, num_tokens: int, *rows: "Tensor") -> None:
        """Check that all of `reads` have a row for each token, of the dims that the op takes.

        Raises:
            ValueError: They have not.
        """
        from kvexp.op.arguments import check_heads  # imports torch

        key, value = rows
        check_heads(key, value, num_tokens, self.equal_heads)

    def resolve_words(self, words: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an implementation takes for these arguments, aliases resolved.

        Raises:
            TypeError: One is of the wrong type.
            ValueError: One is another word, or another number, than there can be.
        """
        from kvexp.op.arguments import resolve_format  # imports torch

        return {name: resolve_format(word, self.formats) for name, word in words.items()}

    def list_cache_types(self, source: "torch.dtype", kv_cache_dtype: str) -> tuple["torch.dtype", ...]:
        """Return what the items of the caches may be in a call with rows of that type."""
        import torch

        from kvexp.op.quantize import FORMATS  # imports torch

        if kv_cache_dtype == "auto":
            return (source,)
        own = FORMATS.get(kv_cache_dtype)
        return (torch.uint8, own.dtype) if own else (torch.uint8,)

    def reads_scales(self, source: "torch.dtype", kv_cache_dtype: str) -> bool:
        """Say whether rows of that type are divided by the scales."""
        return bool(self.scales) and kv_cache_dtype != "auto" and source.itemsize > 1

    def count_tile_items(self, case: Case) -> int | None:
        """Return how many items of K share a scale that is made of them; None where scales are arguments."""
        return None

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """Return the bytes that a call reads (rows of K and V, slots) and writes (rows of K and V).

        Of a padding token the slot is read, but not the rows.
        """
        items = case.written_tokens * case.num_heads * (case.head_size + case.head_size_v)
        slots = 8 * case.num_tokens
        return items * item_bytes + slots, items * case.cache_item_bytes(item_bytes)

    def count_places(self, case: Case) -> int:
        """Return the number of slot mappings that share no slot and begin at multiples of 16 bytes."""
        check_size(case)
        if case.slots not in SLOTS:
            from kvexp.workload.slots import count_mappings  # imports torch

            return count_mappings(case)
        return max(1, case.num_slots // (case.num_tokens + case.num_tokens % 2))

    def allocate(
        self, largest: Case, layout: Layout, source: "torch.dtype", cold: Sequence[tuple[Case, int]] = ()
    ) -> AbstractContextManager["Memory"]:
        """See `op.Op.allocate`."""
        from kvexp.workload.cache_write import allocate  # imports torch

        return allocate(self, largest, layout, source, cold)

    def cache_sizes(self, case: Case) -> Sizes:
        """Return the sizes of the cache: the case's, unless a slot holds more than its row."""
        return case

    def list_planes(self, case: Case, layout: Layout, item_bytes: int) -> Planes:
        """Return the planes of a cache, in the order of `parts`, of a middle layer.

        In a middle layer a write into a neighbouring layer is seen.
        """
        return layout.planes(self.cache_sizes(case), item_bytes, layer=case.num_layers // 2)

    def expect(self, cache: str, rows: "Tensor", kv_cache_dtype: str, scale: "Tensor | None") -> "Tensor":
        """Return the bytes that the slots of these rows must hold: the op's law.

        By default these are the rows as they are, or over their scale as 8-bit floats.

        Args:
            cache: One of `parts`: which rows these are.
            rows: `[n, num_heads, head size]`, of any type of keys and values.
            kv_cache_dtype: `auto` or the fp8 format.
            scale: float32 with one element or `[num_heads]`; None for an op that has none.

        Returns:
            uint8 `[n, num_heads, bytes of a head in the cache]`.
        """
        from kvexp.op.quantize import quantize  # imports torch

        return quantize(rows, kv_cache_dtype, scale)

    def validate(self, arguments: Sequence[Any]) -> ValidCall:
        """See `op.Op.validate`."""
        from kvexp.op.arguments import validate  # imports torch

        return validate(self, arguments)

    def check_slots(self, call: ValidCall) -> None:
        """See `op.Op.check_slots`."""
        from kvexp.op.arguments import check_slot_range  # imports torch

        check_slot_range(call.arguments[self.parameters.index(self.place)], call.num_slots)


def check_size(case: Case) -> None:
    """Check that the cache has the slots that each token needs.

    Raises:
        Unsupported: It has fewer.
    """
    if case.num_tokens > case.num_slots:
        raise Unsupported(
            f"num_tokens {case.num_tokens} exceeds the {case.num_slots} slots of the cache "
            f"({case.num_blocks} blocks of {case.block_size})"
        )
    if case.slots == "decode" and case.num_tokens > case.num_blocks:
        raise Unsupported(
            f"num_tokens {case.num_tokens} exceeds the {case.num_blocks} blocks of the cache, and "
            "slots=decode writes each token to a block of its own"
        )
    batch = parse_batch(case.batch) if case.batch else ()
    blocks = sum(one.count * -(-one.total // case.block_size) for one in batch)
    if blocks > case.num_blocks:
        raise Unsupported(
            f"batch={case.batch} needs {blocks} blocks of {case.block_size} slots, and the cache has "
            f"{case.num_blocks}"
        )


def check_types(op: Op, case: Case) -> None:
    """Check that the op stores rows of the case's dtype in a cache of its kv_cache_dtype.

    Raises:
        Unsupported: It does not, there are no values, or the scale has no meaning.
    """
    if case.kv_cache_dtype not in op.formats:
        raise Unsupported(
            f"op={op.name} has no kv_cache_dtype={case.kv_cache_dtype}; it has {', '.join(op.formats)}"
        )
    if not case.head_size_v and not op.may_lack_values:
        raise Unsupported(f"op={op.name} needs values, so workload.head_size_v must be at least 1, not 0")
    if case.dtype in FP8 and case.kv_cache_dtype != case.dtype:
        raise Unsupported(
            f"dtype={case.dtype} goes into a cache of its own kind, kv_cache_dtype={case.dtype}, "
            f"not {case.kv_cache_dtype}"
        )
    if case.kv_cache_dtype == "auto" and case.scale != "per_tensor":
        raise Unsupported(f"kv_cache_dtype=auto reads no scale, so scale={case.scale} has no meaning")
    if case.dtype in FP8 and case.scale != "per_tensor":
        raise Unsupported(f"dtype={case.dtype} is stored unscaled, so scale={case.scale} has no meaning")
