"""Check the law: `gather(written slots) == expected rows`, byte for byte, and no other byte changed.

What calls write is poisoned once per curve. A check gathers the written slots and compares them with the
expected bytes. At its end a point poisons the slots that it wrote and scans the whole memory: any other byte
that is no poison then is a stray write. So after a right call the memory is all poison again.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kvexp.errors import IncorrectResult
from kvexp.gpu import scan
from kvexp.workload import INTEGERS, Part, Tensors

ROWS_BYTES = 128 << 20
"""Bytes that are compared at once."""


def restore(tensors: Tensors, mappings: int) -> None:
    """Poison the slots of the first `mappings` slot mappings again."""
    slots = tensors.written_slots(mappings).reshape(-1)
    for part in tensors.list_parts():
        words = _view_as_words(part)
        for chunk in slots.split(_count_rows_at_once(part)):
            scan.poison_rows(tensors.memory.storage, words, part.layout.slot_dim, chunk)


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
        IncorrectResult: Wrong bytes in a written slot, or changed inputs. The memory is poisoned.
    """
    try:
        run()
        _check_inputs(tensors, others)
        _check_written(tensors, windows)
    except IncorrectResult:
        scan.poison(tensors.memory.storage)
        raise


def check_timed_slots(tensors: Tensors, windows: Sequence[int], max_bytes: int | None = None) -> None:
    """Check what the last timed run left in the slots, and that the runs did not change their inputs.

    The windows are those of `check_run`. With `max_bytes` only mappings of about so many bytes are checked,
    drawn anew each time.

    Raises:
        IncorrectResult: What was right at first was not right later. The memory is poisoned.
    """
    try:
        _check_inputs(tensors)
        _check_written(tensors, windows, max_bytes)
    except IncorrectResult as difference:
        scan.poison(tensors.memory.storage)
        raise IncorrectResult(f"right at first, but not while it was timed: {difference}") from difference


def check_untouched(storage: Tensor) -> Callable[[], None]:
    """Start a scan of what calls write and its guards, which must be all poison.

    Returns:
        Waits for the scan, and raises IncorrectResult where a byte differs; the memory is poisoned then. On a
        GPU the scan is queued: what is queued after it may change the memory.
    """
    wait = scan.find_unpoisoned(storage)

    def check() -> None:
        changed = wait()
        if changed is not None:
            scan.poison(storage)
            raise IncorrectResult(
                f"a byte outside the written slots changed, byte {changed} of the "
                f"{storage.numel()} of the cache and its guards"
            )

    return check


def _check_inputs(tensors: Tensors, others: bool = False) -> None:
    if not tensors.unchanged(others):
        raise IncorrectResult(f"the call changed its inputs: {tensors.inputs}")


def _check_written(tensors: Tensors, windows: Sequence[int], max_bytes: int | None = None) -> None:
    """Check that mappings hold the rows of their windows; see `check_timed_slots`."""
    slots = tensors.written_slots(len(windows))
    mappings: Sequence[int] = range(len(windows))
    if max_bytes is not None:
        row_bytes = sum(part.row_bytes for part in tensors.list_parts())
        count = max(1, max_bytes // (row_bytes * slots.shape[1]))
        mappings = random.SystemRandom().sample(mappings, min(count, len(mappings)))
    for window in sorted({windows[mapping] for mapping in mappings}):
        own = torch.tensor([m for m in mappings if windows[m] == window], device=slots.device)
        seen, written = tensors.window(window), slots[own]
        for part in seen.list_parts():
            _check_part(seen, part, written)


def _check_part(tensors: Tensors, part: Part, slots: Tensor) -> None:
    wrong = torch.zeros((), dtype=torch.bool, device=slots.device)
    for tokens, chosen, expected in _iterate_chunks(part, slots):
        found = _gather(part, slots[chosen, tokens])
        if part.find_wrong:
            wrong |= _find_wrong(part, found, expected).any()
            continue
        found, asked = found.view(-1, expected.numel()), expected.reshape(-1)
        if asked.numel() % 8 == 0:
            # As 8-byte words, so that the mask of differences is shorter.
            found, asked = found.view(torch.int64), _align(asked).view(torch.int64)
        wrong |= (found != asked).any()
    if bool(wrong):
        fraction, total = _count_wrong(part, slots)
        where = _locate_difference(tensors, part, slots)
        raise IncorrectResult(
            f"{100 * fraction:.3g} % of the {total} elements written to {part.name} are wrong, "
            f"the first at {where}"
        )


def _align(data: Tensor) -> Tensor:
    return data.clone() if data.storage_offset() % 8 else data


def _count_wrong(part: Part, slots: Tensor) -> tuple[float, int]:
    """Return the fraction of the written elements that are wrong, and their number."""
    wrong = total = 0
    for tokens, chosen, expected in _iterate_chunks(part, slots):
        differs = _find_wrong(part, _gather(part, slots[chosen, tokens]), expected)
        wrong += int(differs.count_nonzero())
        total += differs.numel()
    return wrong / total, total


def _find_wrong(part: Part, found: Tensor, expected: Tensor) -> Tensor:
    """Return which elements are wrong, `[m, n, num_heads, elements]`."""
    if part.find_wrong:
        return part.find_wrong(found.view(part.plane.dtype).view(-1, *expected.shape), expected)
    item = INTEGERS[part.plane.itemsize]
    return found.view(-1, *expected.shape).view(item) != expected.view(item)


def _iterate_chunks(part: Part, slots: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield slices of written tokens and of slot mappings, with the bytes expected for those tokens."""
    at_once = _count_rows_at_once(part)
    mappings, num_tokens = slots.shape
    for token in range(0, num_tokens, at_once):
        tokens = slice(token, min(token + at_once, num_tokens))
        expected = part.expect(tokens)
        step = max(1, at_once // (tokens.stop - tokens.start))
        for mapping in range(0, mappings, step):
            yield tokens, slice(mapping, min(mapping + step, mappings)), expected


def _locate_difference(tensors: Tensors, part: Part, slots: Tensor) -> str:
    for tokens, chosen, expected in _iterate_chunks(part, slots):
        some = slots[chosen, tokens]
        found = _gather(part, some)
        differs = _find_wrong(part, found, expected)
        if differs.any():
            # argmax, not nonzero, which needs many bytes for each that differs
            first = int(differs.view(-1).view(torch.uint8).argmax())
            mapping, token, head, element = (int(i) for i in np.unravel_index(first, differs.shape))
            item = found.view(-1)[first * part.plane.itemsize :][: part.plane.itemsize]
            asked = expected[token, head]
            return (
                f"token {tensors.number(tokens.start + token)}, head {head}, element {element} "
                f"(slot {int(some[mapping, token])}): {_describe(part, item, asked, element)}"
            )
    raise AssertionError("no difference was found the second time: the call is still writing")


def _describe(part: Part, item: Tensor, asked: Tensor, element: int) -> str:
    """Describe an element's bytes and those of a head that were expected; of a tolerance, their numbers."""
    if part.find_wrong:
        return f"{float(item.view(part.plane.dtype)):.6g} instead of {float(asked[element]):.6g}"
    size = len(item)
    wrote, right = (bytes(code.tolist())[::-1].hex() for code in (item, asked[element * size :][:size]))
    return f"0x{wrote} instead of 0x{right}"


def _gather(part: Part, slots: Tensor) -> Tensor:
    rows: Tensor = part.layout.gather(_view_as_words(part), slots.reshape(-1))
    return rows.view(torch.uint8)


def _view_as_words(part: Part) -> Tensor:
    """View the plane's bytes as the widest integers that no row splits: fewer are compared faster."""
    plane = part.plane
    if not part.layout.has_whole_heads:
        return plane.view(INTEGERS[plane.itemsize])
    places = (plane.shape[-1], plane.storage_offset(), *plane.stride()[:-1])
    aligned = math.gcd(8, *(place * plane.itemsize for place in places))
    return plane.view(INTEGERS[aligned])


def _count_rows_at_once(part: Part) -> int:
    return max(1, ROWS_BYTES // part.row_bytes)
