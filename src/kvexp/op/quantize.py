"""Convert rows to cache bytes: the law of the ops that copy rows or store them as 8-bit floats."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """An 8-bit float.

    Attributes:
        dtype: torch's type of it.
        largest: Its largest finite number, at which values are clamped.
    """

    dtype: torch.dtype
    largest: float


FORMATS = {
    "fp8_e4m3": Format(torch.float8_e4m3fn, 448.0),
    "fp8_e5m2": Format(torch.float8_e5m2, 57344.0),
}

SOURCES = {
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    **{name: target.dtype for name, target in FORMATS.items()},
}
"""The types of keys and values, by their names in the configuration."""

NAN = 0x7F
"""The code for NaN of either sign, in both formats."""


TILE = 128
"""Items of a row of fp8_ds_mla that share a scale."""

LEAST_SCALE = 1e-4
"""The least scale of a tile, before it is rounded up to a power of two."""

LEAST_AMAX = 1e-4
"""What the largest magnitude of an indexer's key is taken for where it is less."""

LARGEST_CODES = {"int8_per_token_head": 127.0, "fp8_per_token_head": 448.0}
"""What the largest magnitude of a head becomes."""

LEAST_HEAD_SCALE = 1e-6
"""The least scale of a head."""


def quantize(rows: Tensor, kv_cache_dtype: str, scale: Tensor | None) -> Tensor:
    """Return the bytes that a cache must hold for these rows.

    fp8 stores `x / scale`: float32, IEEE division, one conversion to nearest even, saturating. The divisor is
    a tensor because torch on CUDA turns division by a Python number into multiplication by its reciprocal,
    which rounds differently. Rows of one byte an item are stored unchanged.

    Args:
        rows: `[n, num_heads, head_size]`, float16, bfloat16, float32 or an 8-bit type; the last dim
            contiguous.
        kv_cache_dtype: `auto`, `fp8_e4m3` or `fp8_e5m2`.
        scale: float32 with one element or `[num_heads]`, on the rows' device; None if it is not read.

    Returns:
        uint8 `[n, num_heads, head_size * cache item bytes]`.

    Raises:
        ValueError: `kv_cache_dtype` is unknown, or the scale that it needs is missing.
    """
    if kv_cache_dtype != "auto" and kv_cache_dtype not in FORMATS:
        raise ValueError(f"kv_cache_dtype {kv_cache_dtype!r} is not one of auto, {', '.join(FORMATS)}")
    if kv_cache_dtype == "auto" or rows.itemsize == 1:
        return rows.view(torch.uint8).contiguous()
    if scale is None:
        raise ValueError(f"kv_cache_dtype {kv_cache_dtype} needs a scale")
    target = FORMATS[kv_cache_dtype]
    quotient = torch.div(rows.float(), scale.reshape(-1, 1))
    # torch keeps NaN's sign, and e5m2 overflows to infinity: so clamp first and set NaN last.
    codes = quotient.clamp(-target.largest, target.largest).to(target.dtype).view(torch.uint8)
    return torch.where(quotient.isnan(), torch.full_like(codes, NAN), codes)


def quantize_tiles(rows: Tensor) -> Tensor:
    """Return e4m3 codes of these rows, then the scales of their tiles of 128 items: fp8_ds_mla.

    A tile's scale is the smallest power of two not below `max(amax / 448, 1e-4)`, in float32; amax ignores
    NaN. A power of two divides exactly, so each code is rounded once.

    Args:
        rows: `[n, num_heads, head_size]`, half or bfloat16, of whole tiles.

    Returns:
        uint8 `[n, num_heads, head_size + 4 * tiles]`; scales are float32.
    """
    tiles = rows.float().unflatten(-1, (-1, TILE))
    scales = _round_up(_divide_by_largest(_find_amax(tiles)).clamp(min=LEAST_SCALE))
    codes = quantize(tiles.reshape(1, -1, TILE), "fp8_e4m3", scales.reshape(-1))
    return torch.cat([codes.view(*rows.shape), scales.contiguous().view(torch.uint8)], -1)


def quantize_indexer_key(rows: Tensor, scale_fmt: str) -> tuple[Tensor, Tensor]:
    """Return e4m3 codes of these rows, and a scale for each: `max(amax, 1e-4) / 448` in float32.

    For `ue8m0` it is the smallest power of two that is not below. amax ignores NaN.

    Args:
        rows: `[n, num_heads, head_size]`, half or bfloat16.
        scale_fmt: `float32` or `ue8m0`.

    Returns:
        uint8 `[n, num_heads, head_size]`, and the float32 scales as uint8 `[n, num_heads, 4]`.
    """
    rows = rows.float()
    scales = _divide_by_largest(_find_amax(rows).clamp(min=LEAST_AMAX))
    if scale_fmt == "ue8m0":
        scales = _round_up(scales)
    codes = quantize(rows.reshape(1, -1, rows.shape[-1]), "fp8_e4m3", scales.reshape(-1))
    return codes.view(rows.shape), scales.unsqueeze(-1).contiguous().view(torch.uint8)


def _find_amax(rows: Tensor) -> Tensor:
    """Return the largest magnitude over the last dim; NaN is left out."""
    return torch.where(rows.isnan(), 0.0, rows).abs().amax(-1)


def _divide_by_largest(amax: Tensor) -> Tensor:
    # By a tensor, since torch on CUDA turns division by a number into multiplication by its reciprocal.
    return torch.div(amax, torch.full_like(amax, FORMATS["fp8_e4m3"].largest))


def _round_up(scales: Tensor) -> Tensor:
    """Return the smallest powers of two that are not below."""
    # By their bits: the exponent, and one more unless the mantissa is 0.
    return ((scales.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)


def quantize_heads(rows: Tensor, kv_cache_dtype: str) -> Tensor:
    """Return the codes of each head, then its scale.

    The scale is `max(amax / largest code, 1e-6)` in float32; amax ignores NaN. A code is of `x / scale`:
    float32, IEEE division. fp8 converts it as `quantize` does. int8 rounds half away from zero, by adding a
    half of the quotient's sign in float32 and truncating; NaN becomes -128.

    Args:
        rows: `[n, num_heads, head_size]`, float16, bfloat16 or float32.
        kv_cache_dtype: `int8_per_token_head` or `fp8_per_token_head`.

    Returns:
        uint8 `[n, num_heads, head_size + 4]`; the scale is a float32.
    """
    items = rows.float()
    amax = _find_amax(items).unsqueeze(-1)
    # A tensor, since torch on CUDA turns division by a number into multiplication by its reciprocal.
    largest = torch.full_like(amax, LARGEST_CODES[kv_cache_dtype])
    scales = torch.div(amax, largest).clamp(min=LEAST_HEAD_SCALE)
    if kv_cache_dtype == "int8_per_token_head":
        quotient = torch.div(items, scales)
        rounded = quotient + torch.copysign(torch.full_like(quotient, 0.5), quotient)
        rounded = torch.where(quotient.isnan(), -128.0, rounded.clamp(-128, 127))
        codes = rounded.trunc().to(torch.int8).view(torch.uint8)
    else:
        heads = items.reshape(1, -1, items.shape[-1])
        codes = quantize(heads, "fp8_e4m3", scales.reshape(-1)).view(*items.shape)
    return torch.cat([codes, scales.contiguous().view(torch.uint8)], -1)
