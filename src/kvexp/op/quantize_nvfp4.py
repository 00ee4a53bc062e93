"""Convert rows to items of 4 bits: the law of nvfp4, whose tiles of 16 items share an 8-bit scale."""

import torch
from torch import Tensor

from kvexp.op.quantize import FORMATS, quantize
from kvexp.op.reshape_and_cache_flash_nvfp4 import TILE

LARGEST = 6.0
"""The largest number of e2m1."""

LARGEST_SCALE = 0x7E
"""The code of the largest scale, 448."""

SIGN = 0x8
"""The bit of a code that is its item's sign."""


def quantize_nvfp4(rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return e2m1 codes of these rows, two in a byte, and the e4m3 scales of their tiles of 16 items.

    With g the scale of all rows and amax the largest magnitude of a tile, NaN left out, the tile's scale is
    `sf = e4m3(amax / (6 g))` and a code that of `x / (sf g)`, to nearest even and saturating, its highest bit
    the sign of x. Where sf is 0, and for NaN, the other bits are 0. Every operation is one of float32. An
    infinite amax makes sf 448. The first item of two is in the lower bits.

    Args:
        rows: `[n, num_heads, head_size]`, half or bfloat16, of whole tiles; the last dim contiguous.
        scale: g, float32 with one element, positive and finite.

    Returns:
        uint8 `[n, num_heads, head_size / 2]` and uint8 `[n, num_heads, head_size / 16]`.
    """
    tiles = rows.float().unflatten(-1, (-1, TILE))
    amax = torch.where(tiles.isnan(), 0.0, tiles).abs().amax(-1)
    codes = quantize(amax, "fp8_e4m3", scale * LARGEST)
    scales = torch.where(amax.isinf(), LARGEST_SCALE, codes)
    divisor = (scales.view(FORMATS["fp8_e4m3"].dtype).float() * scale).unsqueeze(-1)
    levels = torch.where(scales.unsqueeze(-1) == 0, 0, _find_levels(torch.div(tiles.abs(), divisor)))
    # By the bits: conversion to float32 may change the sign of NaN.
    signs = (rows.view(torch.int16) < 0).unflatten(-1, (-1, TILE))
    items = (levels | torch.where(signs, SIGN, 0)).to(torch.uint8).flatten(-2)
    return items[..., ::2] | (items[..., 1::2] << 4), scales


def _find_levels(numbers: Tensor) -> Tensor:
    """Return how many steps from 0 the nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6 is; a tie is even, NaN 0."""
    is_above = [numbers > middle for middle in (0.25, 1.25, 2.5, 5.0)]
    is_reached = [numbers >= middle for middle in (0.75, 1.75, 3.5)]
    return torch.stack([*is_above, *is_reached]).sum(0)
