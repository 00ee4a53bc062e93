"""Compute an element's place in the cache by the contract's arithmetic, not by the layouts' indexing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from kvexp.bench.verify import check_run, check_untouched, restore
from kvexp.errors import IncorrectResult
from kvexp.gpu import scan
from kvexp.layout import Sizes
from kvexp.op.quantize import quantize
from kvexp.workload.cache_write import Cache, Tensors
from tests.helpers import tiny_curve

MAPPINGS = 3
FIRST = [0] * MAPPINGS
"""Each mapping holds the rows of the first window."""

TOTAL = MAPPINGS * 16 * 2 * 32
"""Elements that `point` writes to either plane."""

PACKED_ORDERS = {"NHD_packed": "BLNHC", "HND_packed": "BLHNC", "BHLNC": "BHLNC", "LHBNC": "LHBNC"}
"""vLLM's name of each packed layout: layer, block, slot (N), head, content; the outermost dim first."""


def packed_items(name: str, sizes: Sizes, layer: int) -> Tensor:
    """Return the item of each element of a layer: int64 `[num_blocks, block_size, num_heads, content]`."""
    width = sizes.head_size + sizes.head_size_v
    count = {
        "L": sizes.num_layers, "B": sizes.num_blocks, "N": sizes.block_size, "H": sizes.num_heads, "C": width,
    }  # fmt: skip
    stride, items = {}, 1
    for dim in reversed(PACKED_ORDERS[name]):
        stride[dim], items = items, items * count[dim]
    places = torch.full((1,), layer * stride["L"])
    for dim in "BNHC":
        places = places.unsqueeze(-1) + torch.arange(count[dim]) * stride[dim]
    return places[0]


@contextmanager
def point(**chosen: Any) -> Iterator[Tensors]:
    """Build the tensors of 16 tokens and three slot mappings, on a poisoned cache."""
    with tiny_curve.memory(num_tokens=16, **chosen) as held:
        scan.poison(held.cache.storage)
        yield held.build(tiny_curve.case(num_tokens=16, **chosen), MAPPINGS)


def addresses(tensors: Tensors, plane: Tensor, slots: Tensor) -> Tensor:
    """Return the byte of the storage where each element begins, int64 `[n, num_heads, head_size]`."""
    block_size = tensors.case.block_size
    rows = tensors.key if plane is tensors.key_cache else tensors.value
    block, offset = slots.view(-1, 1, 1) // block_size, slots.view(-1, 1, 1) % block_size
    head, element = torch.arange(rows.shape[1]).view(1, -1, 1), torch.arange(rows.shape[2])
    if tensors.cache.layout.shape == "flash":
        place: tuple[Tensor, ...] = (block, offset, head, element)
    elif plane.dim() == 5:
        x = plane.shape[-1]
        place = (block, head, element // x, offset, element % x)
    else:
        place = (block, head, element, offset)
    first = torch.tensor(plane.storage_offset())
    items = sum((i * stride for i, stride in zip(place, plane.stride(), strict=True)), start=first)
    return items * plane.element_size()


def planes(tensors: Tensors) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return rows, plane and scale of K and of V."""
    return [
        (tensors.key, tensors.key_cache, tensors.k_scale),
        (tensors.value, tensors.value_cache, tensors.v_scale),
    ]


def write(tensors: Tensors) -> None:
    """Write every slot mapping's rows to their places, byte by byte."""
    for slots in tensors.slot_mappings:
        tokens = (slots >= 0).nonzero().flatten()
        for rows, plane, scale in planes(tensors):
            size = plane.element_size()
            at = addresses(tensors, plane, slots[tokens]).unsqueeze(-1) + torch.arange(size)
            codes = quantize(rows, tensors.kv_cache_dtype, scale)[tokens]
            tensors.cache.storage[at.flatten()] = codes.flatten()


def spoilt(
    tensors: Tensors, name: str, slot: int, head: int, element: int, by: int = 1, count: int = 1
) -> Callable[[], None]:
    """Return a call that writes all rows, but changes `count` bytes of one element."""
    at = int(addresses(tensors, getattr(tensors, name), torch.tensor([slot]))[0, head, element])

    def run() -> None:
        write(tensors)
        tensors.cache.storage[at : at + count] ^= by

    return run


def all_poison(cache: Cache) -> bool:
    """Return whether every byte of the cache and its guards is poison."""
    return scan.find_unpoisoned(cache.storage)() is None


def free_slot(tensors: Tensors) -> int:
    """Return the last slot that is in no mapping."""
    taken = set(tensors.slot_mappings.flatten().tolist())
    return next(slot for slot in reversed(range(tensors.case.num_slots)) if slot not in taken)


def verify(run: Callable[[], None], tensors: Tensors, windows: Sequence[int]) -> None:
    """Run the calls on a cache that is all poison and check all that they wrote, as a point does."""
    check_run(run, tensors, windows)
    restore(tensors, len(windows))
    check_untouched(tensors.cache.storage)()


def reason(tensors: Tensors, run: Callable[[], None], windows: Sequence[int] = FIRST) -> str:
    """Return why the call is incorrect; check that the cache is all poison again."""
    with pytest.raises(IncorrectResult) as raised:
        verify(run, tensors, windows)
    assert all_poison(tensors.cache)
    return str(raised.value)
