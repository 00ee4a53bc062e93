"""Check the law: `gather(written slots) == op.expect(rows)`, byte for byte, and no other byte changed.

The cache is poisoned once per curve. A check gathers the written slots and compares them with the expected
bytes. At its end a point poisons the slots that it wrote and scans the whole cache: any other byte that is
no poison then is a stray write. So after a right call the cache is all poison again.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvexp.errors import IncorrectResult
from kvexp.gpu import scan
from kvexp.workload import Cache, Tensors

ROWS_BYTES = 128 << 20
"""Bytes that are compared at once."""

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types as which items are copied and compared, by item size."""


@dataclass(frozen=True)
class Part:
    """The rows of one cache.

    Attributes:
        name: The cache's: `key_cache` or `value_cache`.
        rows: What is read.
        plane: Where it is written.
        scale: What fp8 divides by.
    """

    name: str
    rows: Tensor
    plane: Tensor
    scale: Tensor


def _list_parts(tensors: Tensors) -> tuple[Part, Part]:
    return (
        Part("key_cache", tensors.key, tensors.key_cache, tensors.k_scale),
        Part("value_cache", tensors.value, tensors.value_cache, tensors.v_scale),
    )


def poison(cache: Cache) -> None:
    """Fill the cache and its guards with poison."""
    scan.poison(cache.storage)


def restore(tensors: Tensors, mappings: int) -> None:
    """Poison the slots of the first `mappings` slot mappings again."""
    slots = tensors.written_slots(mappings).reshape(-1)
    for part in _list_parts(tensors):
        words = _view_as_words(tensors, part.plane)
        for chunk in slots.split(_count_rows_at_once(tensors, part)):
            scan.poison_rows(tensors.cache.storage, words, tensors.cache.layout.slot_dim, chunk)


def check_run(
    run: Callable[[], None], tensors: Tensors, windows: Sequence[int], others: bool = False
) -> None:
    """Run the calls and check the slots that they wrote, and their inputs.

    The written slots stay as they are, whatever they held before. The rest of the cache is left to a later
    scan, before which nothing but these calls may run.

    Args:
        run: Writes the rows of `tensors` to the slots of its first slot mappings.
        tensors: The case's tensors.
        windows: For each of those mappings, the window whose rows it holds in the end.
        others: Check the curve's other inputs, too.

    Raises:
        IncorrectResult: Wrong bytes in a written slot, or changed inputs. The cache is poisoned.
    """
    try:
        run()
        _check_inputs(tensors, others)
        _check_written(tensors, windows)
    except IncorrectResult:
        poison(tensors.cache)
        raise


def check_timed_slots(tensors: Tensors, windows: Sequence[int], max_bytes: int | None = None) -> None:
    """Check what the last timed run left in the slots, and that the runs did not change their inputs.

    Args:
        tensors: The case's tensors.
        windows: For each slot mapping, the window whose rows it holds.
        max_bytes: Check mappings of about so many bytes, drawn anew each time; all by default.

    Raises:
        IncorrectResult: What was right at first was not right later. The cache is poisoned.
    """
    try:
        _check_inputs(tensors)
        _check_written(tensors, windows, max_bytes)
    except IncorrectResult as difference:
        poison(tensors.cache)
        raise IncorrectResult(f"right at first, but not while it was timed: {difference}") from difference


def check_untouched(cache: Cache) -> Callable[[], None]:
    """Start a scan of the cache and its guards, which must be all poison.

    Returns:
        Waits for the scan, and raises IncorrectResult where a byte differs; the cache is poisoned then. On a
        GPU the scan is queued: what is queued after it may change the cache.
    """
    wait = scan.find_unpoisoned(cache.storage)

    def check() -> None:
        changed = wait()
        if changed is not None:
            poison(cache)
            raise IncorrectResult(
                f"a byte outside the written slots changed, byte {changed} of the "
                f"{cache.storage.numel()} of the cache and its guards"
            )

    return check


def _check_inputs(tensors: Tensors, others: bool = False) -> None:
    if not tensors.unchanged(others):
        raise IncorrectResult("the call changed its inputs: keys, values, slots or scales")


def _check_written(tensors: Tensors, windows: Sequence[int], max_bytes: int | None = None) -> None:
    """Check that mappings hold the rows of their windows; see `check_timed_slots`."""
    slots = tensors.written_slots(len(windows))
    mappings: Sequence[int] = range(len(windows))
    if max_bytes is not None:
        row_bytes = sum(rows[0].numel() * rows.itemsize for rows in (tensors.key, tensors.value))
        count = max(1, max_bytes // (row_bytes * slots.shape[1]))
        mappings = random.SystemRandom().sample(mappings, min(count, len(mappings)))
    for window in sorted({windows[mapping] for mapping in mappings}):
        own = torch.tensor([m for m in mappings if windows[m] == window], device=slots.device)
        seen, written = tensors.window(window), slots[own]
        for part in _list_parts(seen):
            _check_part(seen, part, written)


def _check_part(tensors: Tensors, part: Part, slots: Tensor) -> None:
    wrong = torch.zeros((), dtype=torch.bool, device=slots.device)
    for tokens, chosen, expected in _iterate_chunks(tensors, part, slots):
        found = _gather(tensors, part.plane, slots[chosen, tokens]).view(-1, expected.numel())
        asked = expected.reshape(-1)
        if asked.numel() % 8 == 0:
            # As 8-byte words, so that the mask of differences is shorter.
            found, asked = found.view(torch.int64), _align(asked).view(torch.int64)
        wrong |= (found != asked).any()
    if bool(wrong):
        fraction, total = _count_wrong(tensors, part, slots)
        where = _locate_difference(tensors, part, slots)
        raise IncorrectResult(
            f"{100 * fraction:.3g} % of the {total} elements written to {part.name} are wrong, "
            f"the first at {where}"
        )


def _align(data: Tensor) -> Tensor:
    return data.clone() if data.storage_offset() % 8 else data


def _count_wrong(tensors: Tensors, part: Part, slots: Tensor) -> tuple[float, int]:
    """Return the fraction of the written elements that are wrong, and their number."""
    item, wrong, total = INTEGERS[part.plane.itemsize], 0, 0
    for tokens, chosen, expected in _iterate_chunks(tensors, part, slots):
        found = _gather(tensors, part.plane, slots[chosen, tokens]).view(-1, *expected.shape)
        differs = found.view(item) != expected.view(item)
        wrong += int(differs.count_nonzero())
        total += differs.numel()
    return wrong / total, total


def _iterate_chunks(tensors: Tensors, part: Part, slots: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield slices of written tokens and of slot mappings, with the bytes expected for those tokens."""
    rows, at_once = part.rows, _count_rows_at_once(tensors, part)
    mappings, num_tokens = slots.shape
    for token in range(0, num_tokens, at_once):
        tokens = slice(token, min(token + at_once, num_tokens))
        chosen = (
            rows[tokens]
            if tensors.unpadded is None
            else _view_as_integers(rows)[tensors.unpadded[tokens]].view(rows.dtype)
        )
        expected = tensors.memory.op.expect(part.name, chosen, tensors.kv_cache_dtype, part.scale)
        step = max(1, at_once // (tokens.stop - tokens.start))
        for mapping in range(0, mappings, step):
            yield tokens, slice(mapping, min(mapping + step, mappings)), expected


def _locate_difference(tensors: Tensors, part: Part, slots: Tensor) -> str:
    for tokens, chosen, expected in _iterate_chunks(tensors, part, slots):
        some = slots[chosen, tokens]
        found = _gather(tensors, part.plane, some).view(-1, *expected.shape)
        differs = found != expected
        if differs.any():
            # argmax, not nonzero, which needs many bytes for each that differs
            first = int(differs.view(-1).view(torch.uint8).argmax())
            mapping, token, head, byte = (int(i) for i in np.unravel_index(first, differs.shape))
            size = part.plane.element_size()
            start = byte // size * size
            wrote = bytes(found[mapping, token, head, start : start + size].tolist())[::-1].hex()
            asked = bytes(expected[token, head, start : start + size].tolist())[::-1].hex()
            written = tokens.start + token
            number = written if tensors.unpadded is None else int(tensors.unpadded[written])
            return (
                f"token {number}, head {head}, element {byte // size} "
                f"(slot {int(some[mapping, token])}): 0x{wrote} instead of 0x{asked}"
            )
    raise AssertionError("no difference was found the second time: the call is still writing")


def _gather(tensors: Tensors, plane: Tensor, slots: Tensor) -> Tensor:
    rows: Tensor = tensors.cache.layout.gather(_view_as_words(tensors, plane), slots.reshape(-1))
    return rows.view(torch.uint8)


def _view_as_integers(plane: Tensor) -> Tensor:
    """View the same items as integers: bytes, whatever they mean as numbers."""
    return plane.view(INTEGERS[plane.itemsize])


def _view_as_words(tensors: Tensors, plane: Tensor) -> Tensor:
    """View the plane's bytes as the widest integers that no row splits: fewer are compared faster."""
    if not tensors.cache.layout.has_whole_heads:
        return _view_as_integers(plane)
    places = (plane.shape[-1], plane.storage_offset(), *plane.stride()[:-1])
    aligned = math.gcd(8, *(place * plane.itemsize for place in places))
    return plane.view(INTEGERS[aligned])


def _count_rows_at_once(tensors: Tensors, part: Part) -> int:
    # An fp8 row is a float32 one while the oracle divides.
    item_bytes = part.rows.itemsize if tensors.kv_cache_dtype == "auto" else 4
    return max(1, ROWS_BYTES // (part.rows[0].numel() * item_bytes))
