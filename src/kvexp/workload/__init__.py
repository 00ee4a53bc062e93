"""Build the tensors of one curve and of one case from sizes and patterns.

Imports nothing of kvexp but case, errors, op, layout and gpu.

The cache and the inputs are allocated once per curve, for its largest `num_tokens`; a case has views of them.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kvexp.case import Case
from kvexp.gpu.scan import checksums
from kvexp.layout import Layout, Plane
from kvexp.op import Op, cache_item_bytes
from kvexp.workload import device_memory, inputs
from kvexp.workload import slots as patterns
from kvexp.workload.inputs import Rows

GUARD_BYTES = 4096
"""Poisoned bytes before and after the cache, which reveal a write outside it."""

NO_SLOT = -1
"""The slot of a padding token."""

TIMED, BOUND, LAST = range(3)
"""Draws of keys, values and slots: for timing, for binding calls, and for the last check.

A draw of a point depends on the seed alone, not on earlier draws.
"""

APART = 0x2545F491
"""Distance between the seeds of two draws; a CPU's generator uses only the lowest 32 bits."""


@dataclass(frozen=True)
class Cache:
    """The cache of one curve.

    Attributes:
        storage: uint8, the memory of the planes of all layers and the guards.
        key: K's plane of the layer that is written, in the shape that the op takes.
        value: V's plane.
        packed: Both as one plane; None where they are separate.
        layout: Where a slot's row lives in a plane.
    """

    storage: Tensor
    key: Tensor
    value: Tensor
    packed: Tensor | None
    layout: Layout


@dataclass(frozen=True)
class Tensors:
    """The tensors of one case; views of the curve's memory.

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
    def kv_cache_dtype(self) -> str:
        """`auto` or the fp8 format."""
        return self.case.kv_cache_dtype

    @functools.cached_property
    def k_scale(self) -> Tensor:
        """float32, one element without dims or `[num_heads]`: amax / 64 of the curve's keys."""
        return self._scale(0)

    @functools.cached_property
    def v_scale(self) -> Tensor:
        """The same for the values."""
        return self._scale(1)

    def written_slots(self, mappings: int) -> Tensor:
        """Return the slots of the first mappings without padding, int64 `[mappings, written_tokens]`."""
        chosen = self.slot_mappings[:mappings]
        return chosen if self.unpadded is None else chosen[:, self.unpadded]

    def window(self, index: int) -> "Tensors":
        """Return these tensors with the inputs of another window."""
        if index == 0:
            return self
        rows = slice(index * self.step, index * self.step + len(self.key))
        return replace(self, key=self.rows.key[rows], value=self.rows.value[rows])

    def redraw(self, draw: int) -> None:
        """Change keys, values, slots and, where they are read, scales in place.

        Args:
            draw: TIMED, BOUND or LAST; the same draw gives the same data.
        """
        self.memory.draw(self.case, self.rows, draw)
        if self.unpadded is not None:
            drawn = _split_slots(self.case, self.memory, len(self.slot_mappings))
            self.slot_mappings.data[:, self.unpadded] = drawn[:, self.unpadded]
        self.seal()

    def seal(self) -> None:
        """Store the checksums of inputs, slots and scales."""
        self.sums[:] = self._sums()

    def unchanged(self, others: bool = False) -> bool:
        """Return whether inputs, slots and scales are as they were when sealed.

        Args:
            others: Check the curve's other inputs as well.
        """
        return self.sums == self._sums() and not (others and self.other_sums != self._other_sums())

    def _sums(self) -> list[int]:
        own = [self.slot_mappings.reshape(-1)] if self.unpadded is not None else []
        return checksums([self.rows.flat, self.memory.slots, self.memory.scales, *own])

    def _other_sums(self) -> list[int]:
        return checksums([self.memory.inputs[len(self.rows.flat) :]])

    def _scale(self, plane: int) -> Tensor:
        scale = self.memory.scales[plane]
        return scale[0] if self.case.scale == "per_tensor" else scale


@dataclass(frozen=True)
class Memory:
    """The memory that a curve holds from its first point to its last.

    Attributes:
        op: The op, which says what a call must write.
        largest: The case with the curve's largest `num_tokens`.
        cache: The cache.
        rows: Keys and values of the largest point; a smaller one's are `rows.for_case`.
        slots: int64 `[num_slots]`: every slot once, in the order in which calls write them.
        scales: float32 `[2, num_heads]`, or one column per tensor.
        checksums: Of inputs, slots and scales when they were last set.
    """

    op: Op
    largest: Case
    cache: Cache
    rows: Rows
    slots: Tensor
    scales: Tensor
    checksums: list[int] = field(default_factory=list)

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
        """Set the scales to amax / 64 of these keys and of these values."""
        for scale, plane in zip(self.scales.data, (rows.key, rows.value), strict=True):
            scale.copy_(_find_amax(plane, self.largest.scale) / 64)

    def seal(self) -> None:
        """Store the checksums of inputs, slots and scales."""
        self.checksums[:] = self._sums()

    def unchanged(self) -> bool:
        """Return whether inputs, slots and scales are as they were when sealed."""
        return self.checksums == self._sums()

    def _sums(self) -> list[int]:
        return checksums([self.inputs, self.slots, self.scales])


@contextmanager
def allocate(
    op: Op, largest: Case, layout: Layout, source: torch.dtype, least_rows: int = 0
) -> Iterator[Memory]:
    """Allocate a curve's memory inside the block and free it at the end.

    Args:
        op: The op.
        largest: The curve's point with the most tokens.
        layout: The cache's.
        source: Type of keys and values.
        least_rows: Rows of keys and of values, where the largest point needs fewer.

    Raises:
        Unsupported: The memory does not fit the device.
    """
    item_bytes = cache_item_bytes(largest.kv_cache_dtype, source.itemsize)
    # A middle layer, so that a write into a neighbouring layer is seen.
    planes = layout.planes(op.cache_sizes(largest), item_bytes, layer=largest.num_layers // 2)
    cache_bytes = planes.items * item_bytes
    device_memory.check(
        largest, cache_bytes, inputs.count_items(largest, source.itemsize, least_rows) * source.itemsize
    )
    device = torch.device(largest.device)
    item = source if largest.kv_cache_dtype == "auto" else torch.uint8
    storage = torch.empty(cache_bytes + 2 * GUARD_BYTES, dtype=torch.uint8, device=device)
    items = storage[GUARD_BYTES : GUARD_BYTES + cache_bytes].view(item)
    packed = _view(items, planes.packed) if planes.packed else None
    cache = Cache(storage, _view(items, planes.key), _view(items, planes.value), packed, layout)
    memory = Memory(
        op=op,
        largest=largest,
        cache=cache,
        rows=inputs.allocate(largest, source, device, least_rows),
        slots=torch.empty(largest.num_slots, dtype=torch.int64, device=device),
        scales=torch.empty(
            (2, largest.num_heads if largest.scale == "per_head" else 1), dtype=torch.float32, device=device
        ),
    )
    try:
        memory.fill()
        yield memory
    finally:
        del storage, items, packed, cache, memory
        if device.type == "cuda":
            torch.cuda.empty_cache()


def build(case: Case, memory: Memory, mappings: int, windows: int = 1, step: int = 0) -> Tensors:
    """Return the tensors of one case.

    Args:
        case: The point.
        memory: The curve's memory.
        mappings: Number of slot mappings, which share no slot.
        windows: Number of sets of keys and values.
        step: Rows from one set to the next; see `inputs.window_step`.

    Raises:
        Unsupported: `num_tokens` exceeds the slots of the cache.
    """
    patterns.check(case)
    slot_mappings = _split_slots(case, memory, mappings)
    unpadded = patterns.draw_unpadded(case, memory.slots.device)
    if unpadded is not None:
        padded = torch.full_like(slot_mappings, NO_SLOT)
        padded[:, unpadded] = slot_mappings[:, unpadded]
        slot_mappings = padded
    rows, size = memory.rows.for_case(case, windows, step), case.num_tokens + case.extra_tokens
    tensors = Tensors(
        case=case,
        key=rows.key[:size],
        value=rows.value[:size],
        rows=rows,
        memory=memory,
        slot_mappings=slot_mappings[:, : case.num_tokens],
        step=step,
        unpadded=unpadded,
    )
    tensors.seal()
    tensors.other_sums[:] = tensors._other_sums()
    return tensors


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
