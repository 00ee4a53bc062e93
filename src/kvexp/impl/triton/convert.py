"""Convert items to cache items on the GPU: the functions that the ops' kernels share."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Whether Triton's interpreter runs the kernels; it does not fuse tl.fma, by which a remainder is exact."""


@triton.jit
def quotient_of(x, divisor, CORRECTIONS: tl.constexpr):
    """Return `x / divisor`, exact once it is a code, by the divisor's reciprocal and the exact remainder.

    One correction rounds correctly for sources of 16 bits, two for all; see src/kvexp/impl/cuda/convert.cuh.
    This needs a divisor between 2^-60 and 2^60; any other is scaled into that range, together with its
    dividend, by a power of two. A dividend that loses bits or overflows by this has a quotient that becomes 0
    or the largest number anyway.
    """
    if INTERPRETED:
        return tl.div_rn(x, tl.broadcast_to(divisor, x.shape))
    size = tl.abs(divisor)
    shift = tl.where(size < 2.0**-60, 2.0**96, tl.where(size > 2.0**60, 2.0**-96, 1.0))
    x, divisor = x * shift, divisor * shift
    reciprocal = tl.div_rn(1.0, divisor)
    first = x * reciprocal
    better = first
    for _ in tl.static_range(CORRECTIONS):
        better = tl.fma(tl.fma(-better, divisor, x), reciprocal, better)
    # The correction would drop the sign of a zero and turn an infinity into NaN.
    return tl.where(tl.abs(better) > 0.0, better, first)


@triton.jit
def cache_items(
    items,  # [TOKENS, COLUMNS]
    first_column,
    scale_ptr,
    cache_ptr,
    ROW_ITEMS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    FP8: tl.constexpr,
    PER_HEAD: tl.constexpr,
):
    """Convert source items to cache items; fp8 divides in float32 and rounds once, to the cache's item type.

    tl.div_rn is IEEE division; Triton's `/` is not.
    """
    if FP8:
        x = items.to(tl.float32)
        if PER_HEAD:
            # Items of one head share a reciprocal in runs of 16, or of the largest smaller power of two that
            # divides the head size.
            COLUMNS: tl.constexpr = items.shape[1]
            RUN: tl.constexpr = min(16, COLUMNS, HEAD_SIZE & -HEAD_SIZE)
            item = first_column + tl.arange(0, COLUMNS // RUN) * RUN
            scale = tl.load(scale_ptr + item // HEAD_SIZE, mask=item < ROW_ITEMS, other=1.0)[None, :, None]
            x = tl.reshape(x, (items.shape[0], COLUMNS // RUN, RUN))
        else:
            scale = tl.load(scale_ptr)
        x = quotient_of(x, scale, 1 if items.dtype.primitive_bitwidth == 16 else 2)
        items = tl.reshape(x, items.shape).to(cache_ptr.dtype.element_ty)
    return items
