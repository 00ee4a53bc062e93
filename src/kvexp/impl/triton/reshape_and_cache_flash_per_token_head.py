"""Write heads with scales of their own: a program moves whole heads of K and of V, some cells of each."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import math

import triton
import triton.language as tl
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.gpu.launch import Launch
from kvexp.impl.triton.convert import quotient_of
from kvexp.impl.triton.reshape_and_cache_flash import FP8_ITEMS, SM_THREADS, THREADS
from kvexp.impl.triton.source import (
    FP8,
    MOST_TILE_ITEMS,
    SOURCES,
    Fit,
    Gpu,
    Kernel,
    Options,
    Plan,
    Tile,
    find_divisor,
)
from kvexp.op.quantize import LARGEST_CODES

SCALE_BYTES = 4


def fit(key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_cache_dtype: str) -> Fit:
    """Fit the kernel to these tensors."""
    _, num_heads, head_size = key.shape
    head_size_v = value.shape[2]
    shape = kv_cache.shape[:3]
    # The stride of a dim of size 1 is arbitrary, and is only multiplied by 0.
    strides = [s if n > 1 else 0 for n, s in zip(shape, kv_cache.stride(), strict=False)]
    sizes = (shape[0] * shape[1], key.stride(0), value.stride(0), *strides)
    rows, cells = find_divisor(key.data_ptr() | value.data_ptr()), find_divisor(kv_cache.data_ptr())
    # From the start of the cache: codes of K, their scale, codes of V, their scale.
    places = (0, head_size, head_size + SCALE_BYTES, head_size + SCALE_BYTES + head_size_v)
    # Accesses of a scale where the cells allow it, else of parts of one.
    scale_bytes = math.gcd(SCALE_BYTES, cells, *strides, places[1], places[3])
    is_int8 = kv_cache_dtype == "int8_per_token_head"
    codes, scales = "*i8" if is_int8 else FP8["fp8_e4m3"], f"*i{8 * scale_bytes}"
    kernel = Kernel(
        function=quantize_heads,
        pointers=(SOURCES[key.dtype], SOURCES[key.dtype], codes, scales, codes, scales, "*i64"),
        # torch aligns slots to their items at least; counts may be anything.
        divisors=(
            rows,
            rows,
            *(math.gcd(cells, find_divisor(place)) for place in places),
            8,
            1,
            1,
            *map(find_divisor, sizes[1:]),
        ),
        constants=(
            ("NUM_HEADS", num_heads),
            ("HEAD_SIZE", head_size),
            ("HEAD_SIZE_V", head_size_v),
            ("BLOCK_SIZE", shape[1]),
            ("LARGEST", int(LARGEST_CODES[kv_cache_dtype])),
            ("SCALE_BYTES", scale_bytes),
        ),
    )

    def adapt(launch: Launch) -> Launch:
        def launch_cells(key: int, value: int, kv_cache: int, slots: int) -> None:
            launch(key, value, *(kv_cache + place for place in places), slots)

        return launch_cells

    plan = Plan(kernel, sizes, num_heads * max(head_size, head_size_v), choose_tile, adapt)
    parts = (kv_cache[..., place:] for place in places)
    return plan, (key, value, *parts, slot_mapping), slot_mapping.shape[0]


def choose_tile(plan: Plan, num_tokens: int, gpu: Gpu, options: Options) -> Tile:
    """Return a tile of whole heads of a token: 8 items of K and of V a thread, or twice that.

    Raises:
        Unsupported: The options would split heads, or the tile is too large.
    """
    if options.tile_columns is not None:
        raise Unsupported("impl.tile_columns has no meaning where a program moves whole heads")
    widths = dict(plan.kernel.constants)
    columns, columns_v = (triton.next_power_of_2(widths[name]) for name in ("HEAD_SIZE", "HEAD_SIZE_V"))
    # Conversion is bound by arithmetic, of which larger tiles save some once a quarter of the GPU is filled.
    is_large = 4 * num_tokens * plan.row_items >= FP8_ITEMS * gpu.sm_count * SM_THREADS
    items = THREADS * FP8_ITEMS * (2 if is_large else 1)
    cells = max(1, items // max(columns, columns_v))
    heads = min(cells, triton.next_power_of_2(widths["NUM_HEADS"]))
    tokens = options.tile_tokens or cells // heads
    if tokens * heads * (columns + columns_v) > MOST_TILE_ITEMS:
        raise Unsupported(
            f"a tile of {tokens} x {heads * (columns + columns_v)} items is more than {MOST_TILE_ITEMS}"
        )
    constants = (("COLUMNS", columns), ("COLUMNS_V", columns_v), ("TOKENS", tokens), ("HEADS", heads))
    return Tile(tokens, -(-widths["NUM_HEADS"] // heads), constants)


@triton.jit
def _scale_of(x, LARGEST: tl.constexpr):
    """Return the scale of each row of items, `[CELLS]`; NaN is left out."""
    size = tl.abs(x)
    amax = tl.max(tl.where(size == size, size, 0.0), axis=1)
    return tl.maximum(tl.div_rn(amax, LARGEST * 1.0), 1e-6)


@triton.jit
def _codes_of(items, scale, codes_ptr):
    """Return the codes of each row of items: int8 half away from zero, NaN as -128; or fp8."""
    x = quotient_of(items.to(tl.float32), scale[:, None], 1 if items.dtype.primitive_bitwidth == 16 else 2)
    if codes_ptr.dtype.element_ty == tl.int8:
        rounded = x + tl.where(x < 0.0, -0.5, 0.5)
        rounded = tl.minimum(tl.maximum(rounded, -128.0), 127.0)
        return tl.where(x == x, rounded, -128.0).to(tl.int32).to(tl.int8)
    return x.to(codes_ptr.dtype.element_ty)


@triton.jit
def _store_scale(scale_ptr, place, scale, written, SCALE_BYTES: tl.constexpr):
    """Store each row's scale as words of SCALE_BYTES, the lowest first; places are in bytes."""
    PARTS: tl.constexpr = 4 // SCALE_BYTES
    part = tl.arange(0, PARTS)[None, :]
    parts = scale.to(tl.int32, bitcast=True)[:, None] >> (part * (8 * SCALE_BYTES))
    at = (place // SCALE_BYTES)[:, None] + part
    tl.store(scale_ptr + at, parts.to(scale_ptr.dtype.element_ty), mask=written[:, None])


@triton.jit
def quantize_heads(
    key_ptr,  # [>= num_tokens, NUM_HEADS, HEAD_SIZE]
    value_ptr,  # [>= num_tokens, NUM_HEADS, HEAD_SIZE_V]
    k_codes_ptr,  # bytes [num_blocks, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE + 4 + HEAD_SIZE_V + 4]
    k_scale_ptr,  # the same from byte HEAD_SIZE on, as words of SCALE_BYTES
    v_codes_ptr,  # the same from byte HEAD_SIZE + 4 on
    v_scale_ptr,  # the same from byte HEAD_SIZE + 4 + HEAD_SIZE_V on, as words of SCALE_BYTES
    slot_mapping_ptr,  # int64 [num_tokens]
    num_tokens,
    num_slots,
    key_stride,
    value_stride,
    block_stride,  # in bytes, as token_stride and head_stride
    token_stride,
    head_stride,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_SIZE_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
    SCALE_BYTES: tl.constexpr,
    COLUMNS: tl.constexpr,
    COLUMNS_V: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Write TOKENS x HEADS cells; grid ceil(num_tokens / TOKENS) * ceil(NUM_HEADS / HEADS)."""
    tiles: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    cell = tl.arange(0, TOKENS * HEADS)
    token = (tl.program_id(0) // tiles).to(tl.int64) * TOKENS + cell // HEADS
    head = tl.program_id(0) % tiles * HEADS + cell % HEADS
    column = tl.arange(0, COLUMNS)[None, :]
    column_v = tl.arange(0, COLUMNS_V)[None, :]
    known = (token < num_tokens) & (head < NUM_HEADS)

    key_item = (token * key_stride + head * HEAD_SIZE)[:, None] + column
    value_item = (token * value_stride + head * HEAD_SIZE_V)[:, None] + column_v
    key = tl.load(key_ptr + key_item, mask=known[:, None] & (column < HEAD_SIZE), other=0.0)
    value = tl.load(value_ptr + value_item, mask=known[:, None] & (column_v < HEAD_SIZE_V), other=0.0)
    # Loaded after the rows, which do not wait for it.
    slot = tl.load(slot_mapping_ptr + token, mask=known, other=-1)

    k_scale = _scale_of(key.to(tl.float32), LARGEST)
    v_scale = _scale_of(value.to(tl.float32), LARGEST)
    key = _codes_of(key, k_scale, k_codes_ptr)
    value = _codes_of(value, v_scale, v_codes_ptr)

    written = (slot >= 0) & (slot < num_slots)
    place = (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * token_stride + head * head_stride
    tl.store(k_codes_ptr + place[:, None] + column, key, mask=written[:, None] & (column < HEAD_SIZE))
    tl.store(v_codes_ptr + place[:, None] + column_v, value, mask=written[:, None] & (column_v < HEAD_SIZE_V))
    _store_scale(k_scale_ptr, place, k_scale, written, SCALE_BYTES)
    _store_scale(v_scale_ptr, place, v_scale, written, SCALE_BYTES)
