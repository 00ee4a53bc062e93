"""Draw the order in which the calls of a curve write the cache's slots.

Each order has every slot once, so that calls which take successive pieces share none.
"""

import torch
from torch import Tensor

from kvexp.case import SLOTS, Case

PREFILL_TOKENS = 128


def order(case: Case, device: torch.device, generator: torch.Generator, rotated: bool = False) -> Tensor:
    """Return every slot once, int64 `[num_slots]`, in the case's pattern.

    random: any slots; contiguous: ascending; reversed: descending; decode: one token of each of many
    sequences, each in a block of its own; prefill: sequences of about 128 tokens, each in adjacent slots.

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
    raise ValueError(f"slots {case.slots!r} is not one of {', '.join(SLOTS)}")


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
