"""Make and fill the keys and values of a question: contiguous or with gaps, plain or special."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kvexp.case import Case
from kvexp.op.quantize import FORMATS
from kvexp.workload import INTEGERS, inputs
from kvexp.workload.inputs import Rows

SPECIAL_ITEMS = 4 << 20
"""Special items at each end of a memory; values are checked alike wherever they lie."""
SCALE_EXPONENTS = (-6, -3)
"""Exponents of special scales, which are powers of two: with them many quotients are ties."""
EXPONENTS = (-14, 4)
"""Exponents of factors that spread special numbers over the range of an 8-bit float."""

TILE_LIMITS = (
    *(2.0**-20, 1e-4, 127e-6, 448e-6),
    *(448 * 2.0**-14, 448 * 2.0**-13, 448 * 2.0**-6, 1.0, 127.0, 448.0),
)
"""Magnitudes at which the scale of a tile with its own scale is the smallest, or changes."""

SOURCE_REPEATS = 8
"""How often the edges of the source's own type occur among those of all types."""


def make(case: Case, source: torch.dtype, gaps: tuple[int, int]) -> list[Rows]:
    """Allocate memories of keys and values: one, or one for each where rows have gaps.

    The question takes the first one's key and the last one's value.
    """
    device = torch.device(case.device)
    if gaps == (0, 0):
        return [inputs.allocate(case, source, device)]
    count = inputs.count_rows(case, source.itemsize)
    made = []
    for gap, size in zip(gaps, (case.head_size, case.head_size_v), strict=True):
        stride = case.num_heads * size + gap
        flat = torch.empty(count * stride, dtype=source, device=device)
        rows = flat.as_strided((count, case.num_heads, size), (stride, size, 1))
        made.append(Rows(flat, rows, rows))
    return made


def fill_special(flat: Tensor, scales: Sequence[Tensor], generator: torch.Generator) -> None:
    """Fill both ends of the items with special ones, and set the scales to powers of two.

    A quarter of those items are edges of the types, a quarter are random bits (of NaN only the usual codes),
    and half are numbers whose quotients are often ties.
    """
    for scale in scales:
        exponents = torch.randint(*SCALE_EXPONENTS, scale.shape, generator=generator, device=scale.device)
        scale.copy_(exponents.float().exp2())
    count = min(len(flat), SPECIAL_ITEMS)
    for part in (flat[:count], flat[-count:]):
        _fill(part, generator)


def limit_tiles(flat: Tensor, tile: int, generator: torch.Generator) -> None:
    """Limit the items of most tiles, which else would all have an infinity and so an infinite scale.

    A limit is 0, or one of those where the scale of a tile changes, or a step beside it. Items that exceed it
    become the limit, and so does NaN in every other tile.
    """
    tiles = flat[: len(flat) // tile * tile].view(-1, tile)
    limits = torch.tensor([0.0, math.inf, *TILE_LIMITS], device=flat.device).to(flat.dtype)
    beside = [torch.nextafter(limits[2:], torch.full_like(limits[2:], to)) for to in (0.0, math.inf)]
    limits = torch.cat([limits, *beside])
    which = torch.randint(len(limits), (len(tiles), 1), generator=generator, device=flat.device)
    limit = limits[which]
    is_odd = torch.arange(len(tiles), device=flat.device).unsqueeze(1) % 2 == 1
    exceeds = (tiles.abs() > limit) | (tiles.isnan() & is_odd & ~limit.isinf())
    tiles.copy_(torch.where(exceeds, torch.copysign(limit, tiles), tiles))


def _fill(part: Tensor, generator: torch.Generator) -> None:
    device, shape = part.device, part.shape

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, device=device)

    integer = INTEGERS[part.itemsize]
    limits = torch.iinfo(integer)
    edges = torch.tensor(_list_edges(part.dtype), dtype=torch.float32, device=device)
    # Rounded to bfloat16 whatever the type: few digits make ties.
    numbers = torch.randn(shape, generator=generator, device=device).bfloat16().float()
    numbers *= draw(*EXPONENTS).float().exp2()
    kind = draw(0, 4)
    chosen = torch.where(kind == 0, edges[draw(0, len(edges))], numbers).to(part.dtype)
    bits = draw(limits.min, limits.max + 1).to(integer)
    part.view(integer).copy_(torch.where(kind == 1, bits, chosen.view(integer)))
    if part.itemsize > 1:
        # Only the usual NaN of either sign: conversion through wider registers changes other codes.
        usual = torch.copysign(torch.full_like(part, math.nan), part)
        part.copy_(torch.where(part.isnan(), usual, part))


def _list_edges(source: torch.dtype) -> list[float]:
    """Return numbers where types begin, end and round, with those that a special scale makes of them."""
    own = torch.finfo(source)
    # Repeated, so that small calls have them beside the numbers that concern 8-bit floats alone.
    found = [0.0, math.inf, math.nan, own.max, own.tiny, own.tiny / 2] * SOURCE_REPEATS
    for target in FORMATS.values():
        info = torch.finfo(target.dtype)
        least = info.smallest_normal * info.eps
        quotients = [info.max, info.max * 1.03, info.max * 2, least, least / 2, least * 1.5, 1 + info.eps / 2]
        for exponent in range(*SCALE_EXPONENTS):
            found += [quotient * 2.0**exponent for quotient in quotients]
    return [*found, *(-number for number in found)]
