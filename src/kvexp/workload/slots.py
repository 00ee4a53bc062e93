"""Draw the order in which the calls of a curve write the cache's slots.

Each order of a pattern has every slot once, so that calls which take successive pieces share none. That of a
batch or of recorded slots has as many such pieces as fit, then zeros.
"""

import functools

import torch
from torch import Tensor

from kvexp.case import NO_SLOT, SLOTS, Case, parse_batch

PREFILL_TOKENS = 128


def order(case: Case, device: torch.device, generator: torch.Generator, rotated: bool = False) -> Tensor:
    """Return slots in the case's pattern, int64 `[num_slots]`.

    random: any slots; contiguous: ascending; reversed: descending; decode: one token of each of many
    sequences, each in a block of its own; prefill: sequences of about 128 tokens, each in adjacent slots.
    A batch: its new tokens in blocks at random; recorded: those of a file, shifted by whole blocks.

    Args:
        case: The point.
        device: The result's device.
        generator: Draws random patterns.
        rotated: Begin ascending or descending slots at another block, or if there is only one, another slot.
    """
    match case.slots:
        case "random":
            return torch.randperm(case.num_slots, generator=generator, device=device)
        case "contiguous":
            return _ascending(case, device, generator, rotated)
        case "reversed":
            return _ascending(case, device, generator, rotated).flip(0)
        case "decode":
            return _decode(case, device, generator)
        case "prefill":
            return _prefill(_ascending(case, device, generator, rotated), generator)
    if case.recorded:
        return _lay_out(case, _shift_recorded(case, device, generator, rotated))
    if case.batch:
        return _lay_out(case, _place_batch(case, device, generator))
    raise ValueError(f"slots {case.slots!r} is not one of {', '.join(SLOTS)}")


def count_mappings(case: Case) -> int:
    """Return how many slot mappings of a batch, or of recorded slots, share no slot."""
    most = max(1, case.num_slots // (case.num_tokens + case.num_tokens % 2))
    if case.recorded:
        return min(most, len(_list_shifts(case)))
    return min(most, case.num_blocks // int(_locate_batch(case)[0].max() + 1))


def _lay_out(case: Case, mappings: Tensor) -> Tensor:
    """Return the mappings one after the other, each at a multiple of 16 bytes, as `[num_slots]`."""
    slots = torch.zeros(case.num_slots, dtype=torch.int64, device=mappings.device)
    stride = case.num_tokens if len(mappings) == 1 else case.num_tokens + case.num_tokens % 2
    slots[: len(mappings) * stride].view(len(mappings), stride)[:, : case.num_tokens] = mappings
    return slots


def _place_batch(case: Case, device: torch.device, generator: torch.Generator) -> Tensor:
    """Return mappings of a batch, int64 `[mappings, num_tokens]`, in blocks that are drawn at random."""
    block, offset = (found.to(device) for found in _locate_batch(case))
    count, mappings = int(block.max() + 1), count_mappings(case)
    blocks = torch.randperm(case.num_blocks, generator=generator, device=device)
    return blocks[: count * mappings].view(mappings, count)[:, block] * case.block_size + offset


@functools.lru_cache(4)
def _locate_batch(case: Case) -> tuple[Tensor, Tensor]:
    """Return the block of each new token of a batch, counted from 0, and its place in the block.

    A request's new tokens are its last ones; the blocks of its past are not counted.
    """
    blocks, offsets, begun = [], [], 0
    for requests in parse_batch(case.batch):
        positions = torch.arange(requests.total - requests.new, requests.total)
        own = positions // case.block_size - positions[0] // case.block_size
        count = int(own[-1]) + 1
        begins = begun + count * torch.arange(requests.count)
        blocks.append((begins[:, None] + own).flatten())
        offsets.append((positions % case.block_size).repeat(requests.count))
        begun += count * requests.count
    return torch.cat(blocks), torch.cat(offsets)


def _shift_recorded(case: Case, device: torch.device, generator: torch.Generator, rotated: bool) -> Tensor:
    """Return recorded slots, shifted by other blocks each time, int64 `[mappings, num_tokens]`.

    Padding has slot 0.
    """
    slots = torch.tensor(case.recorded, device=device)
    shifts = torch.tensor(_list_shifts(case)[: count_mappings(case)], device=device)
    if rotated and case.num_blocks > 1:
        shifts += torch.randint(1, case.num_blocks, (), generator=generator, device=device)
    shifted = (slots + case.block_size * shifts[:, None]) % case.num_slots
    return shifted.where(slots != NO_SLOT, 0)


@functools.lru_cache(4)
def _list_shifts(case: Case) -> list[int]:
    """List numbers of blocks by which recorded slots can be shifted so that no two results share a slot."""
    slots = torch.tensor(case.recorded)
    taken = torch.zeros(case.num_slots, dtype=torch.float64)
    taken[slots[slots != NO_SLOT]] = 1
    # Two shifts collide if they differ by the distance of two slots in one place of their blocks: those are
    # where the slots' autocorrelation over blocks is not 0.
    spectrum = torch.fft.rfft(taken.view(case.num_blocks, case.block_size), dim=0)
    overlap = torch.fft.irfft(spectrum.abs() ** 2, case.num_blocks, dim=0).sum(1)
    collisions = (overlap > 0.5).nonzero().flatten()
    is_free = torch.ones(case.num_blocks, dtype=torch.bool)
    shifts: list[int] = []
    while is_free.any():
        shifts.append(int(is_free.int().argmax()))
        is_free[(shifts[-1] + collisions) % case.num_blocks] = False
    return shifts


def _ascending(case: Case, device: torch.device, generator: torch.Generator, rotated: bool) -> Tensor:
    """Return all slots ascending, from slot 0 or from a random block on."""
    slots = torch.arange(case.num_slots, device=device)
    step, steps = (case.block_size, case.num_blocks) if case.num_blocks > 1 else (1, case.block_size)
    if not rotated or steps == 1:
        return slots
    begin = torch.randint(1, steps, (), generator=generator, device=device)
    return slots.roll(-step * int(begin))


def draw_unpadded(case: Case, device: torch.device) -> Tensor | None:
    """Return the tokens that have a slot, int64 `[written_tokens]` ascending; None when all have."""
    if case.written_tokens == case.num_tokens:
        return None
    if case.recorded:
        return (torch.tensor(case.recorded, device=device) != NO_SLOT).nonzero().flatten()
    if case.padding_at == "end":
        return torch.arange(case.written_tokens, device=device)
    generator = torch.Generator().manual_seed(case.seed)
    drawn = torch.randperm(case.num_tokens, generator=generator)[: case.written_tokens]
    return drawn.sort().values.to(device)


def _decode(case: Case, device: torch.device, generator: torch.Generator) -> Tensor:
    """Return all slots such that each run of `num_blocks` visits every block once, in the same order."""
    blocks = torch.randperm(case.num_blocks, generator=generator, device=device)
    begin = torch.randint(case.block_size, (case.num_blocks,), generator=generator, device=device)
    slots = torch.empty(case.block_size, case.num_blocks, dtype=torch.int64, device=device)
    for step, row in enumerate(slots):
        torch.add((begin + step) % case.block_size, blocks, alpha=case.block_size, out=row)
    return slots.view(-1)


def _prefill(slots: Tensor, generator: torch.Generator) -> Tensor:
    """Return the slots as runs cut at random places, also inside blocks, in random order."""
    num_slots, device = len(slots), slots.device
    cuts = torch.randint(num_slots, (num_slots // PREFILL_TOKENS,), generator=generator, device=device)
    starts = torch.zeros(num_slots, dtype=torch.int64, device=device)
    starts[cuts] = 1
    run = starts.cumsum(0)
    runs = int(run[-1]) + 1
    rank = torch.randperm(runs, generator=generator, device=device)
    return slots[torch.argsort(rank[run], stable=True)]
