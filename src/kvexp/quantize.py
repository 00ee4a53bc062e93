"""How a row becomes bytes: the oracle's half of the law `gather(written slots) == quantize(rows)`."""

import torch
from torch import Tensor

E4M3_MAX = 448.0
E4M3_NAN = 0x7F


def quantize(rows: Tensor, kv_cache_dtype: str, scale: Tensor) -> Tensor:
    """The bytes that a cache must hold for these rows.

    fp8 stores `x / scale`: float32, IEEE division, one conversion, to nearest even, saturating; NaN of
    either sign is 0x7F. The divisor is a tensor on purpose: torch on CUDA turns division by a Python number
    into a multiplication by its reciprocal, which is another rounding.

    Args:
        rows: `[n, num_heads, head_size]`, float16, bfloat16 or float32; the last dim contiguous.
        kv_cache_dtype: `auto` or `fp8_e4m3`.
        scale: float32 with one element, on the rows' device; not read for `auto`.

    Returns:
        uint8 `[n, num_heads, head_size * cache item bytes]`.

    Raises:
        ValueError: `kv_cache_dtype` is another word.
    """
    if kv_cache_dtype == "auto":
        return rows.contiguous().view(torch.uint8)
    if kv_cache_dtype != "fp8_e4m3":
        raise ValueError(f"kv_cache_dtype {kv_cache_dtype!r} is not one of auto, fp8_e4m3")
    quotient = torch.div(rows.float(), scale.reshape(()))
    # torch keeps NaN's sign and, from other versions, might not saturate: clamp first, NaN last.
    codes = quotient.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(quotient.isnan(), torch.full_like(codes, E4M3_NAN), codes)
