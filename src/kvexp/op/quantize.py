"""How a row becomes bytes: the oracle's half of the law `gather(written slots) == quantize(rows)`."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """An 8-bit float.

    Attributes:
        dtype: torch's type of it.
        largest: Its largest finite number; what is beyond becomes that.
    """

    dtype: torch.dtype
    largest: float


FORMATS = {
    "fp8_e4m3": Format(torch.float8_e4m3fn, 448.0),
    "fp8_e5m2": Format(torch.float8_e5m2, 57344.0),
}

NAN = 0x7F
"""The one code for NaN, of either sign, in either format."""


def quantize(rows: Tensor, kv_cache_dtype: str, scale: Tensor | None) -> Tensor:
    """The bytes that a cache must hold for these rows.

    fp8 stores `x / scale`: float32, IEEE division, one conversion, to nearest even, saturating. The divisor
    is a tensor on purpose: torch on CUDA turns division by a Python number into a multiplication by its
    reciprocal, which is another rounding. Rows that are of one byte an item already are stored as they are.

    Args:
        rows: `[n, num_heads, head_size]`, float16, bfloat16, float32 or an 8-bit type; the last dim
            contiguous.
        kv_cache_dtype: `auto`, `fp8_e4m3` or `fp8_e5m2`.
        scale: float32 with one element or `[num_heads]`, on the rows' device; None where it is not read.

    Returns:
        uint8 `[n, num_heads, head_size * cache item bytes]`.

    Raises:
        ValueError: `kv_cache_dtype` is another word, or the scale that it needs is missing.
    """
    if kv_cache_dtype != "auto" and kv_cache_dtype not in FORMATS:
        raise ValueError(f"kv_cache_dtype {kv_cache_dtype!r} is not one of auto, {', '.join(FORMATS)}")
    if kv_cache_dtype == "auto" or rows.itemsize == 1:
        return rows.view(torch.uint8).contiguous()
    if scale is None:
        raise ValueError(f"kv_cache_dtype {kv_cache_dtype} needs a scale")
    wanted = FORMATS[kv_cache_dtype]
    quotient = torch.div(rows.float(), scale.reshape(-1, 1))
    # torch keeps NaN's sign, and e5m2 overflows to infinity: clamp first, NaN last.
    codes = quotient.clamp(-wanted.largest, wanted.largest).to(wanted.dtype).view(torch.uint8)
    return torch.where(quotient.isnan(), torch.full_like(codes, NAN), codes)
