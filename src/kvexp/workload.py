"""Sizes and slot patterns become the tensors of one curve and of one case.

The cache and the inputs are allocated once per curve, for its largest `num_tokens`; a case sees views.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout, Plane
from kvexp.op import cache_item_bytes

GUARD_BYTES = 4096
"""Poisoned bytes before and after the cache, so that a write outside it is seen as well."""

CHECKSUM_WORDS = 8 << 20

WORKING_BYTES = 1 << 30
"""What verification (chunks of rows) and graph capture need beside the tensors."""


@dataclass(frozen=True)
class Cache:
    """The cache of one curve.

    Attributes:
        storage: uint8, guards included; the memory behind both planes.
        key: K's plane, the shape that the op takes.
        value: V's plane.
        layout: Where a slot's row lives in a plane.
    """

    storage: Tensor
    key: Tensor
    value: Tensor
    layout: Layout


@dataclass(frozen=True)
class Tensors:
    """The tensors of one case; views of the curve's memory.

    Attributes:
        case: The point.
        key: `[num_tokens, num_heads, head_size]`.
        value: `[num_tokens, num_heads, head_size_v]`.
        memory: The curve's memory, which these are views of.
        slot_mappings: int64 `[mappings, num_tokens]`; no slot occurs twice, and each mapping begins at a
            multiple of 16 bytes, as a tensor of its own would.
        k_scale: float32 with one element; amax / 64 of the keys, as the seed scripts choose it.
        v_scale: The same for the values.
    """

    case: Case
    key: Tensor
    value: Tensor
    memory: "Memory"
    slot_mappings: Tensor
    k_scale: Tensor
    v_scale: Tensor

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
    def kv_cache_dtype(self) -> str:
        """`auto` or the fp8 format."""
        return self.case.kv_cache_dtype


@dataclass(frozen=True)
class Memory:
    """What a curve holds from its first point to its last.

    Attributes:
        largest: The case with the curve's largest `num_tokens`.
        cache: The cache.
        inputs: `[2, tokens, num_heads, head_size]`: keys, then values.
        slots: int64 `[num_slots]`: every slot once, in the order the calls walk through them.
        scales: float32 `[2]`.
        checksums: Of the inputs, the slots and the scales, as they are meant to stay.
    """

    largest: Case
    cache: Cache
    inputs: Tensor
    slots: Tensor
    scales: Tensor
    checksums: list[int] = field(default_factory=list)

    def fill(self) -> None:
        """Inputs, slots and scales are what the case's seed makes of them, whatever they were."""
        case, device = self.largest, self.inputs.device
        generator = torch.Generator(device).manual_seed(case.seed)
        self.inputs.normal_(generator=generator)
        for scale, plane in zip(self.scales, self.inputs, strict=True):
            # No abs(): a copy of the inputs that nobody counted.
            scale.copy_(torch.maximum(plane.amax(), -plane.amin()).float() / 64)
        if case.slots == "contiguous":
            torch.arange(case.num_slots, device=device, out=self.slots)
        else:
            torch.randperm(case.num_slots, generator=generator, device=device, out=self.slots)
        self.seal()

    def seal(self) -> None:
        """Inputs, slots and scales are meant to stay as they are now."""
        self.checksums[:] = self._sums()

    def unchanged(self) -> bool:
        """Whether inputs, slots and scales are as they were sealed."""
        return self.checksums == self._sums()

    def _sums(self) -> list[int]:
        return [checksum(tensor) for tensor in (self.inputs, self.slots, self.scales)]


@contextmanager
def allocate(largest: Case, layout: Layout, source: torch.dtype) -> Iterator[Memory]:
    """The memory of a curve whose largest point is `largest`; given back at the end.

    Raises:
        Unsupported: The memory does not fit the device.
    """
    item_bytes = source.itemsize
    cache_bytes = cache_item_bytes(largest.kv_cache_dtype, item_bytes)
    planes = layout.planes(largest, cache_bytes)
    _check_fits(largest, planes.items * cache_bytes, item_bytes)
    device = torch.device(largest.device)
    item = source if largest.kv_cache_dtype == "auto" else torch.uint8
    storage = torch.empty(planes.items * cache_bytes + 2 * GUARD_BYTES, dtype=torch.uint8, device=device)
    items = storage[GUARD_BYTES : GUARD_BYTES + planes.items * cache_bytes].view(item)
    cache = Cache(storage, _view(items, planes.key), _view(items, planes.value), layout)
    tokens = min(largest.num_tokens, largest.num_slots)
    memory = Memory(
        largest=largest,
        cache=cache,
        inputs=torch.empty((2, tokens, largest.num_heads, largest.head_size), dtype=source, device=device),
        slots=torch.empty(largest.num_slots, dtype=torch.int64, device=device),
        scales=torch.empty(2, dtype=torch.float32, device=device),
    )
    memory.fill()
    yield memory
    del storage, items, cache, memory
    if device.type == "cuda":
        torch.cuda.empty_cache()


def build(case: Case, memory: Memory, mappings: int) -> Tensors:
    """The tensors of one case with `mappings` slot mappings that share no slot.

    Raises:
        Unsupported: `num_tokens` exceeds the slots of the cache.
    """
    check_slots(case)
    stride = case.num_tokens if mappings == 1 else case.num_tokens + case.num_tokens % 2
    return Tensors(
        case=case,
        key=memory.inputs[0, : case.num_tokens],
        value=memory.inputs[1, : case.num_tokens],
        memory=memory,
        slot_mappings=memory.slots[: mappings * stride].view(mappings, stride)[:, : case.num_tokens],
        k_scale=memory.scales[0],
        v_scale=memory.scales[1],
    )


def check_slots(case: Case) -> None:
    """Returns when the cache has a slot for each token.

    Raises:
        Unsupported: It has fewer.
    """
    if case.num_tokens > case.num_slots:
        raise Unsupported(
            f"num_tokens {case.num_tokens} exceeds the {case.num_slots} slots of the cache "
            f"({case.num_blocks} blocks of {case.block_size})"
        )


def checksum(tensor: Tensor) -> int:
    """A number that changes when a byte of a contiguous tensor does, or when words trade places."""
    data = tensor.view(-1).view(torch.uint8)
    whole = data.numel() // 8 * 8
    total = data[whole:].sum(dtype=torch.int64)
    for chunk in torch.split(data[:whole].view(torch.int64), CHECKSUM_WORDS):
        odd = 2 * torch.arange(len(chunk), device=chunk.device) + 1
        total = total * 31 + (chunk * odd).sum()
    return int(total)


def _view(items: Tensor, plane: Plane) -> Tensor:
    return items.as_strided(plane.shape, plane.strides, items.storage_offset() + plane.offset)


def _check_fits(case: Case, cache_bytes: int, item_bytes: int) -> None:
    tokens = min(case.num_tokens, case.num_slots)
    others = tokens * case.num_heads * (case.head_size + case.head_size_v) * item_bytes
    others += WORKING_BYTES
    # The slots' order: the permutation and what sorting it takes.
    per_block = cache_bytes // case.num_blocks + 4 * 8 * case.block_size
    needed = per_block * case.num_blocks + others
    free = _free_bytes(case.device)
    if needed <= free:
        return
    fits = max(0, (free - others) // per_block)
    advice = f"workload.num_blocks={fits} would fit" if fits else "no number of blocks would fit"
    raise Unsupported(
        f"the cache of {case.num_blocks} blocks and its inputs need {needed} bytes "
        f"and {case.device} has {free} free: {advice}"
    )


def _free_bytes(device: str) -> float:
    if device == "cpu":
        return min(int(psutil.virtual_memory().available), _cgroup_free_bytes())
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(torch.device(device))[0]


def _cgroup_free_bytes() -> float:
    """What a container's limit leaves; infinite where there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return math.inf
    return math.inf if limit == "max" else int(limit) - used
