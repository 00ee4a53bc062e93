"""Write pages of 4-bit items: a program converts a tile of tokens x columns of K, and the same tile of V.

A column is an item of a token's row, and 16 of them share a scale. All conversions are arithmetic on bits, so
that they are exact on every GPU and in the interpreter.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvexp.impl.triton.reshape_and_cache_flash import FP8_ITEMS, SM_THREADS, THREADS
from kvexp.impl.triton.source import Fit, Gpu, Kernel, Options, Plan, Tile, find_divisor, make_tile
from kvexp.op.reshape_and_cache_flash_nvfp4 import TILE, find_page


def fit(
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    layout: str,
) -> Fit:
    """Fit the kernel to these tensors."""
    page = find_page(key, kv_cache, layout)
    _, num_heads, head_size = key.shape
    slot_rows, head_rows = page.strides
    block_stride = kv_cache.stride(0) if len(kv_cache) > 1 else 0
    sizes = (len(kv_cache) * page.block_size, key.stride(0), value.stride(0), block_stride)
    rows, pages = find_divisor(key.data_ptr() | value.data_ptr()), find_divisor(kv_cache.data_ptr())
    kernel = Kernel(
        function=write_pages,
        pointers=("*i16", "*i16", "*i8", "*i64", "*fp32", "*fp32"),
        # torch aligns slots and scales to their items at least; counts may be anything.
        divisors=(rows, rows, pages, 8, 4, 4, 1, 1, *map(find_divisor, sizes[1:])),
        constants=(
            ("NUM_HEADS", num_heads),
            ("HEAD_SIZE", head_size),
            ("BLOCK_SIZE", page.block_size),
            ("SLOT_ROWS", slot_rows),
            ("HEAD_ROWS", head_rows),
            ("IS_BFLOAT16", int(key.dtype == torch.bfloat16)),
            # The interpreter's fma rounds twice.
            ("HAS_FMA", int(isinstance(write_pages, triton.JITFunction))),
        ),
    )
    tensors = (key, value, kv_cache, slot_mapping, k_scale, v_scale)
    return Plan(kernel, sizes, num_heads * head_size, choose_tile), tensors, slot_mapping.shape[0]


def choose_tile(plan: Plan, num_tokens: int, gpu: Gpu, options: Options) -> Tile:
    """Return a tile of 8 items of K and of V a thread, or twice that once they fill a quarter of the GPU."""
    is_large = 4 * num_tokens * plan.row_items >= FP8_ITEMS * gpu.sm_count * SM_THREADS
    items = THREADS * FP8_ITEMS * (2 if is_large else 1)
    return make_tile(plan.row_items, items, items, options, TILE)


@triton.jit
def _encode_e4m3(x):
    """Return the e4m3 codes of numbers from 0 on: to nearest even, saturating."""
    x = tl.minimum(x, 448.0)
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Adding 2^23 rounds to integers, of the smallest subnormal here.
    subnormal = (x * 512.0 + 8388608.0).to(tl.int32, bitcast=True) - 0x4B000000
    return tl.where(x < 2.0**-6, subnormal, normal)


@triton.jit
def _decode_e4m3(code):
    """Return the numbers of e4m3 codes without sign."""
    normal = ((code << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    return tl.where(code < 8, code.to(tl.float32) * 2.0**-9, normal)


@triton.jit
def _encode_e2m1(x):
    """Return the e2m1 codes of numbers from 0 to 6: to nearest even.

    The codes of numbers below 2, 4 and 8 are the nearest integers of 2 x, x + 2 and x / 2 + 4, a tie the even
    one, and the least of the three is right. Adding 2^23 rounds so.
    """
    least = tl.minimum(x * 2.0 + 8388608.0, tl.minimum(x + 8388610.0, x * 0.5 + 8388612.0))
    return least.to(tl.int32, bitcast=True) - 0x4B000000


@triton.jit
def _divide(x, scale, global_scale, HAS_FMA: tl.constexpr):
    """Return [TOKENS, TILES, 16] numbers over their divisors, at most 6; 0 where the tile's scale is.

    As in convert.py a power of two brings divisors into the range in which one correction rounds correctly. A
    divisor that was rounded to 0 makes numbers 6, and one that was rounded to infinity 0.
    """
    divisor = _decode_e4m3(scale) * global_scale
    shift = tl.where(divisor < 2.0**-60, 2.0**96, tl.where(divisor > 2.0**60, 2.0**-96, 1.0))
    by = tl.minimum(tl.maximum(divisor * shift, 2.0**-60), 2.0**60)
    most = tl.where((scale == 0) | (divisor == float("inf")), 0.0, by * 6.0)
    x = tl.minimum(x * shift[:, :, None], most[:, :, None])
    if HAS_FMA:
        reciprocal = tl.broadcast_to(tl.div_rn(1.0, by)[:, :, None], x.shape)
        first = x * reciprocal
        quotient = tl.fma(tl.fma(-first, tl.broadcast_to(by[:, :, None], x.shape), x), reciprocal, first)
    else:
        quotient = tl.div_rn(x, tl.broadcast_to(by[:, :, None], x.shape))
    return quotient


@triton.jit
def _quantize(items, global_scale, IS_BFLOAT16: tl.constexpr, HAS_FMA: tl.constexpr):
    """Return the bytes of items, [TOKENS, COLUMNS / 2], and of scales, [TOKENS, COLUMNS / 16].

    The items are the bits of the source's, int16 [TOKENS, COLUMNS].
    """
    TOKENS: tl.constexpr = items.shape[0]
    COLUMNS: tl.constexpr = items.shape[1]
    items = tl.reshape(items, (TOKENS, COLUMNS // 16, 16))
    if IS_BFLOAT16:
        size = ((items.to(tl.int32) & 0x7FFF) << 16).to(tl.float32, bitcast=True)
    else:
        size = (items & 0x7FFF).to(tl.float16, bitcast=True).to(tl.float32)
    size = tl.where(size == size, size, 0.0)
    amax = tl.max(size, axis=2)
    # Of two infinities the quotient would be NaN.
    least = tl.where(amax == float("inf"), amax, tl.div_rn(amax, tl.zeros_like(amax) + global_scale * 6.0))
    scale = _encode_e4m3(least)
    levels = _encode_e2m1(_divide(size, scale, global_scale, HAS_FMA))
    signs = (items.to(tl.int32) >> 12) & 8
    even, odd = tl.split(tl.reshape(levels | signs, (TOKENS, COLUMNS // 2, 2)))
    return (even | (odd << 4)).to(tl.int8), scale.to(tl.int8)


@triton.jit
def _find_written(slot, num_slots, global_scale):
    """Return which tokens are written, [TOKENS, 1]; with a scale that is not positive and finite none is."""
    is_valid = (global_scale > 0.0) & (global_scale < float("inf"))
    return ((slot >= 0) & (slot < tl.where(is_valid, num_slots, 0)))[:, None]


@triton.jit
def write_pages(
    key_ptr,  # [>= num_tokens, NUM_HEADS, HEAD_SIZE], the bits of items as int16
    value_ptr,  # likewise
    kv_cache_ptr,  # bytes, pages: items of K, scales of K, items of V, scales of V
    slot_mapping_ptr,  # int64 [num_tokens]
    k_scale_ptr,  # float32, one element; not positive and finite: nothing of K is written
    v_scale_ptr,
    num_tokens,
    num_slots,
    key_stride,
    value_stride,
    block_stride,  # in bytes
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SLOT_ROWS: tl.constexpr,  # rows of a head from slot to slot
    HEAD_ROWS: tl.constexpr,  # and from head to head
    IS_BFLOAT16: tl.constexpr,
    HAS_FMA: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a tile; grid ceil(num_tokens / TOKENS) * ceil(row / COLUMNS)."""
    ROW_ITEMS: tl.constexpr = NUM_HEADS * HEAD_SIZE
    ROW_PROGRAMS: tl.constexpr = (ROW_ITEMS + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    first_column = program % ROW_PROGRAMS * COLUMNS
    token = (program // ROW_PROGRAMS).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    column = (first_column + tl.arange(0, COLUMNS))[None, :]
    known = token < num_tokens

    read = known[:, None] & (column < ROW_ITEMS)
    key = tl.load(key_ptr + (token * key_stride)[:, None] + column, mask=read, other=0)
    value = tl.load(value_ptr + (token * value_stride)[:, None] + column, mask=read, other=0)
    k_scale = tl.load(k_scale_ptr)
    v_scale = tl.load(v_scale_ptr)
    # Loaded after the rows, which do not wait for it.
    slot = tl.load(slot_mapping_ptr + token, mask=known, other=-1)

    SIDE_ROWS: tl.constexpr = NUM_HEADS * BLOCK_SIZE
    SCALES_AT: tl.constexpr = SIDE_ROWS * (HEAD_SIZE // 2)
    VALUE_AT: tl.constexpr = SCALES_AT + SIDE_ROWS * (HEAD_SIZE // 16)
    pair = first_column // 2 + tl.arange(0, COLUMNS // 2)
    tile = first_column // 16 + tl.arange(0, COLUMNS // 16)
    HEAD_PAIRS: tl.constexpr = HEAD_SIZE // 2
    HEAD_TILES: tl.constexpr = HEAD_SIZE // 16
    pair_place = (pair // HEAD_PAIRS * (HEAD_ROWS * HEAD_PAIRS) + pair % HEAD_PAIRS)[None, :]
    tile_place = (tile // HEAD_TILES * (HEAD_ROWS * HEAD_TILES) + tile % HEAD_TILES)[None, :]
    page = ((slot // BLOCK_SIZE) * block_stride)[:, None]
    row = (slot % BLOCK_SIZE * SLOT_ROWS)[:, None]
    pair_at = page + row * HEAD_PAIRS + pair_place
    tile_at = page + row * HEAD_TILES + tile_place + SCALES_AT
    in_pairs = (pair < NUM_HEADS * HEAD_PAIRS)[None, :]
    in_tiles = (tile < NUM_HEADS * HEAD_TILES)[None, :]

    codes, scales = _quantize(key, k_scale, IS_BFLOAT16, HAS_FMA)
    written = _find_written(slot, num_slots, k_scale)
    tl.store(kv_cache_ptr + pair_at, codes, mask=written & in_pairs)
    tl.store(kv_cache_ptr + tile_at, scales, mask=written & in_tiles)
    codes, scales = _quantize(value, v_scale, IS_BFLOAT16, HAS_FMA)
    written = _find_written(slot, num_slots, v_scale)
    tl.store(kv_cache_ptr + VALUE_AT + pair_at, codes, mask=written & in_pairs)
    tl.store(kv_cache_ptr + VALUE_AT + tile_at, scales, mask=written & in_tiles)
