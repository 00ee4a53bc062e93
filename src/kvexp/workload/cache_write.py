"""Build the tensors of ops that write keys and values of tokens to their slots: caches, rows, slots, scales.

Places are slot mappings, windows are sets of keys and values.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvexp.case import NO_SLOT, Case
from kvexp.gpu.scan import checksums
from kvexp.layout import Layout, Plane
from kvexp.workload import APART, BOUND, GUARD_BYTES, INTEGERS, TIMED, Part, device_memory, inputs
from kvexp.workload import slots as patterns
from kvexp.workload.inputs import Rows

if TYPE_CHECKING:
    from kvexp.op.cache_write import CacheWrite


@dataclass(frozen=True)
class Cache:
    """The cache of one curve.

    Attributes:
        storage: uint8, the memory of the planes of all layers and the guards.
        key: K's plane of the layer that is written, in the shape that the op takes.
        value: V's plane.
        packed: Both as one plane; None where they are separate.
        layout: Where a slot's row lives in a plane.
        others: Further planes that are made of K or of V.
    """

    storage: Tensor
    key: Tensor
    value: Tensor
    packed: Tensor | None
    layout: Layout
    others: tuple[Tensor, ...] = ()

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All planes, in the order of `Planes.parts`."""
        return (self.key, self.value, *self.others)


@dataclass(frozen=True)
class Tensors:
    """The tensors of one point; see `workload.Tensors`.

    Attributes:
        case: The point.
        key: `[num_tokens + extra_tokens, num_heads, head_size]`.
        value: `[num_tokens + extra_tokens, num_heads, head_size_v]`.
        rows: Keys and values of all windows, one after the other; `key` and `value` are those of the first.
        memory: The curve's memory, which these are views of.
        slot_mappings: int64 `[mappings, num_tokens]`; no slot but that of padding occurs twice, and each
            mapping begins at a multiple of 16 bytes, as a separate tensor would.
        step: Rows from one window to the next.
        unpadded: The tokens that are no padding, int64 ascending; None without padding.
        sums: Checksums of the case's inputs, slots and scales when they were last set.
        other_sums: The same of the curve's other inputs.
    """

    inputs = "keys, values, slots or scales"

    case: Case
    key: Tensor
    value: Tensor
    rows: Rows
    memory: "Memory"
    slot_mappings: Tensor
    step: int = 0
    unpadded: Tensor | None = None
    sums: list[int] = field(default_factory=list)
    other_sums: list[int] = field(default_factory=list)

    @property
    def cache(self) -> Cache:
        """The curve's cache."""
        return self.memory.cache

    @property
    def key_cache(self) -> Tensor:
        """K's plane."""
        return self.cache.key

    @property
    def value_cache(self) -> Tensor:
        """V's plane."""
        return self.cache.value

    @property
    def kv_cache(self) -> Tensor:
        """Both planes as one; only for packed layouts."""
        assert self.cache.packed is not None
        return self.cache.packed

    @property
    def layout(self) -> Layout:
        """The cache's layout."""
        return self.cache.layout

    @property
    def kv_cache_dtype(self) -> str:
        """`auto` or the fp8 format."""
        return self.case.kv_cache_dtype

    @functools.cached_property
    def k_scale(self) -> Tensor | None:
        """float32, one element without dims or `[num_heads]`, of the curve's keys; see `Memory.rescale`.

        None where the op has no scales.
        """
        return self._get_scale(0)

    @functools.cached_property
    def v_scale(self) -> Tensor | None:
        """The same for the values; the keys' where the op has one scale for both."""
        return self._get_scale(-1)

    @property
    def places(self) -> Tensor:
        """The slot mappings."""
        return self.slot_mappings

    def list_parts(self) -> Sequence[Part]:
        """List what a slot holds in each plane, without what has no bytes in the cache."""
        op, planes = self.memory.op, self.cache.parts
        scales = {"key": self.k_scale, "value": self.v_scale}
        return [
            self._make_part(name, getattr(self, rows), plane, scales[rows])
            for name, rows, plane in zip(op.parts, op.made_of, planes, strict=True)
            if plane.numel()
        ]

    def _make_part(self, name: str, rows: Tensor, plane: Tensor, scale: Tensor | None) -> Part:
        def expect(written: slice) -> Tensor:
            chosen = rows[written]
            if self.unpadded is not None:
                # As integers: torch cannot index every type of 8 bits.
                chosen = rows.view(INTEGERS[rows.itemsize])[self.unpadded[written]].view(rows.dtype)
            expected: Tensor = self.memory.op.expect(name, chosen, self.kv_cache_dtype, scale)
            return expected

        # An fp8 row is a float32 one while the law divides.
        item_bytes = rows.itemsize if self.kv_cache_dtype == "auto" else 4
        items = max(rows[0].numel(), plane[0].numel() // self.case.block_size)
        return Part(name, plane, self.cache.layout, expect, items * item_bytes)

    def number(self, written: int) -> int:
        """Return the number among all tokens of one that has a slot."""
        return written if self.unpadded is None else int(self.unpadded[written])

    def written_slots(self, mappings: int) -> Tensor:
        """Return the slots of the first mappings without padding, int64 `[mappings, written_tokens]`."""
        chosen = self.slot_mappings[:mappings]
        return chosen if self.unpadded is None else chosen[:, self.unpadded]

    def window(self, index: int) -> "Tensors":
        """Return these tensors with the keys and values of another window."""
        if index == 0:
            return self
        rows = slice(index * self.step, index * self.step + len(self.key))
        return replace(self, key=self.rows.key[rows], value=self.rows.value[rows])

    def redraw(self, draw: int) -> None:
        """Change keys, values, slots and, where they are read, scales in place."""
        self.memory.draw(self.case, self.rows, draw)
        if self.unpadded is not None:
            drawn = _split_slots(self.case, self.memory, len(self.slot_mappings))
            self.slot_mappings.data[:, self.unpadded] = drawn[:, self.unpadded]
        self.seal()

    def seal(self) -> None:
        """Store the checksums of inputs, slots and scales."""
        self.sums[:] = self._sums()

    def unchanged(self, others: bool = False) -> bool:
        """Return whether inputs, slots and scales are as they were when sealed."""
        return self.sums == self._sums() and not (others and self.other_sums != self._other_sums())

    def _sums(self) -> list[int]:
        own = [self.slot_mappings.reshape(-1)] if self.unpadded is not None else []
        return checksums([self.rows.flat, self.memory.slots, self.memory.scales, *own])

    def _other_sums(self) -> list[int]:
        return checksums([self.memory.inputs[len(self.rows.flat) :]])

    def _get_scale(self, plane: int) -> Tensor | None:
        if not len(self.memory.scales):
            return None
        scale = self.memory.scales[plane]
        return scale[0] if self.case.scale == "per_tensor" else scale


@dataclass(frozen=True)
class Memory:
    """The memory of a curve; see `workload.Memory`.

    Attributes:
        op: The op, which says what a call must write.
        largest: The case with the curve's largest `num_tokens`.
        cache: The cache.
        rows: Keys and values of the largest point; a smaller one's are `rows.for_case`.
        slots: int64 `[num_slots]`: every slot once, in the order in which calls write them.
        scales: float32 `[2, num_heads]`, or one column per tensor; a row for each scale that the op has.
        checksums: Of inputs, slots and scales when they were last set.
    """

    far = False

    op: "CacheWrite"
    largest: Case
    cache: Cache
    rows: Rows
    slots: Tensor
    scales: Tensor
    checksums: list[int] = field(default_factory=list)

    @property
    def storage(self) -> Tensor:
        """The memory of the cache and its guards."""
        return self.cache.storage

    @property
    def inputs(self) -> Tensor:
        """The memory of keys and values, flat."""
        return self.rows.flat

    def fill(self) -> None:
        """Fill keys, values, slots and scales with the draw that calls are bound with."""
        self.draw(self.largest, self.rows, BOUND)
        self.rescale(self.rows)
        self.seal()

    def draw(self, case: Case, rows: Rows, draw: int) -> None:
        """Draw keys, values, slots and, where an op reads them, scales anew, in place.

        No tensor's version counter changes, just as when a kernel outside torch writes.
        """
        device = self.slots.device
        generator = torch.Generator(device).manual_seed(case.seed + draw * APART)
        # Slots first: a point's slots then do not depend on the curve's largest point.
        self.slots.data.copy_(patterns.order(case, device, generator, rotated=draw != TIMED))
        rows.fill(generator)
        if case.kv_cache_dtype != "auto":
            self.rescale(rows)

    def rescale(self, rows: Rows) -> None:
        """Set the scales to amax / `op.largest_quotient` of these keys and of these values, or of both."""
        if not self.op.scales:
            return
        planes = [plane for plane in (rows.key, rows.value) if plane.numel()]
        largest = [_find_amax(plane, self.largest.scale) for plane in planes]
        if len(self.op.scales) == 1:
            largest = [functools.reduce(torch.maximum, largest)]
        for scale, amax in zip(self.scales.data, largest, strict=True):
            scale.copy_(amax / self.op.largest_quotient)

    def seal(self) -> None:
        """Store the checksums of inputs, slots and scales."""
        self.checksums[:] = self._sums()

    def unchanged(self) -> bool:
        """Return whether inputs, slots and scales are as they were when sealed."""
        return self.checksums == self._sums()

    def build(self, case: Case, mappings: int, windows: int = 1, cold: bool = False) -> Tensors:
        """See `workload.Memory.build`."""
        slot_mappings = _split_slots(case, self, mappings)
        unpadded = patterns.draw_unpadded(case, self.slots.device)
        if unpadded is not None:
            padded = torch.full_like(slot_mappings, NO_SLOT)
            padded[:, unpadded] = slot_mappings[:, unpadded]
            slot_mappings = padded
        step = inputs.window_step(case, self.inputs.itemsize, cold)
        rows, size = self.rows.for_case(case, windows, step), case.num_tokens + case.extra_tokens
        tensors = Tensors(
            case=case,
            key=rows.key[:size],
            value=rows.value[:size],
            rows=rows,
            memory=self,
            slot_mappings=slot_mappings[:, : case.num_tokens],
            step=step,
            unpadded=unpadded,
        )
        tensors.seal()
        tensors.other_sums[:] = tensors._other_sums()
        return tensors

    def _sums(self) -> list[int]:
        return checksums([self.inputs, self.slots, self.scales])


@contextmanager
def allocate(
    op: "CacheWrite",
    largest: Case,
    layout: Layout,
    source: torch.dtype,
    cold: Sequence[tuple[Case, int]] = (),
) -> Iterator[Memory]:
    """Allocate a curve's memory inside the block and free it at the end; see `op.Op.allocate`."""
    item_bytes = largest.cache_item_bytes(source.itemsize)
    least_rows = max(
        (windows * inputs.window_step(case, source.itemsize, cold=True) for case, windows in cold), default=0
    )
    planes = op.list_planes(largest, layout, item_bytes)
    cache_bytes = planes.items * item_bytes
    device_memory.check(
        largest, cache_bytes, inputs.count_items(largest, source.itemsize, least_rows) * source.itemsize
    )
    device = torch.device(largest.device)
    item = source if largest.kv_cache_dtype == "auto" else torch.uint8
    storage = torch.empty(cache_bytes + 2 * GUARD_BYTES, dtype=torch.uint8, device=device)
    items = storage[GUARD_BYTES : GUARD_BYTES + cache_bytes].view(item)
    packed = _view(items, planes.packed) if planes.packed else None
    key, value, *others = (_view(items, plane) for plane in planes.parts)
    cache = Cache(storage, key, value, packed, layout, tuple(others))
    memory = Memory(
        op=op,
        largest=largest,
        cache=cache,
        rows=inputs.allocate(largest, source, device, least_rows),
        slots=torch.empty(largest.num_slots, dtype=torch.int64, device=device),
        scales=torch.empty(
            (len(op.scales), largest.num_heads if largest.scale == "per_head" else 1),
            dtype=torch.float32,
            device=device,
        ),
    )
    try:
        memory.fill()
        yield memory
    finally:
        del storage, items, packed, key, value, others, cache, memory
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _split_slots(case: Case, memory: Memory, mappings: int) -> Tensor:
    """Return the curve's slots as so many mappings, each beginning at a multiple of 16 bytes."""
    stride = case.num_tokens if mappings == 1 else case.num_tokens + case.num_tokens % 2
    return memory.slots[: mappings * stride].view(mappings, stride)


def _view(items: Tensor, plane: Plane) -> Tensor:
    return items.as_strided(plane.shape, plane.strides, items.storage_offset() + plane.offset)


def _find_amax(plane: Tensor, scale: str) -> Tensor:
    """Return the plane's largest magnitude, in all or in each head; 64 where it is stored unscaled."""
    if plane.itemsize == 1:
        return torch.full((), 64.0)
    over = (0, 2) if scale == "per_head" else (0, 1, 2)
    # Not abs(), which would copy the inputs beyond the memory that was checked.
    return torch.maximum(plane.amax(over), -plane.amin(over)).float()
