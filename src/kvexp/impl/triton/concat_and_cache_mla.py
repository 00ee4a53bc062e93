"""Write rows of latent attention: a program moves whole rows of some tokens, kv_c beside k_pe."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.gpu.launch import Launch
from kvexp.impl.triton.convert import cache_items
from kvexp.impl.triton.reshape_and_cache_flash import FP8_ITEMS, THREADS, is_large
from kvexp.impl.triton.source import (
    FP8,
    MOST_TILE_ITEMS,
    SOURCES,
    VECTOR_BYTES,
    Fit,
    Gpu,
    Kernel,
    Options,
    Plan,
    Tile,
    find_divisor,
)
from kvexp.op import DS_MLA

SCALES_AT, ROPE_AT = 512, 528
"""Bytes of a row of fp8_ds_mla before its scales, and before k_pe."""


def fit(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    scale: Tensor | None,
) -> Fit:
    """Fit a kernel to these tensors."""
    if kv_cache_dtype == DS_MLA:
        return _fit_tiles(kv_c, k_pe, kv_cache, slot_mapping)
    copy = kv_cache_dtype == "auto" or kv_c.element_size() == 1
    # A copy moves integers, so that one kernel serves all types of a width and keeps NaNs.
    source = f"*i{8 * kv_c.element_size()}" if copy else SOURCES[kv_c.dtype]
    cache = source if copy else FP8[kv_cache_dtype]
    width, rope_width = kv_c.shape[1], k_pe.shape[1]
    num_slots, *strides = _get_sizes(kv_c, k_pe, kv_cache)
    rows = find_divisor(kv_c.data_ptr() | k_pe.data_ptr())
    kernel = Kernel(
        function=concat,
        pointers=(source, source, cache, "*i64", "*fp32"),
        # torch aligns slots and scales to their items at least; counts may be anything.
        divisors=(rows, rows, find_divisor(kv_cache.data_ptr()), 8, 4, 1, 1, *map(find_divisor, strides)),
        constants=(
            ("WIDTH", width),
            ("ROPE_WIDTH", rope_width),
            ("BLOCK_SIZE", kv_cache.shape[1]),
            ("FP8", int(not copy)),
        ),
    )
    plan = Plan(kernel, (num_slots, *strides), width + rope_width, choose_tile)
    return plan, (kv_c, k_pe, kv_cache, slot_mapping, scale), slot_mapping.shape[0]


def _fit_tiles(kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> Fit:
    num_slots, kv_c_stride, k_pe_stride, *cache_strides = _get_sizes(kv_c, k_pe, kv_cache)
    rows, places = find_divisor(kv_c.data_ptr() | k_pe.data_ptr()), find_divisor(kv_cache.data_ptr())
    aligned = min(places, *map(find_divisor, cache_strides))
    # Accesses of an item where the cache's places allow it, else of parts of one.
    scale_bytes, rope_bytes = min(4, aligned), min(kv_c.element_size(), aligned)
    k_pe_stride *= kv_c.element_size() // rope_bytes
    sizes = (num_slots, kv_c_stride, k_pe_stride, *cache_strides)
    scales, rope = f"*i{8 * scale_bytes}", f"*i{8 * rope_bytes}"
    kernel = Kernel(
        function=quantize_tiles,
        pointers=(SOURCES[kv_c.dtype], rope, FP8["fp8_e4m3"], scales, rope, "*i64"),
        divisors=(rows, rows, places, places, places, 8, 1, *map(find_divisor, (1, *sizes[1:]))),
        constants=(
            ("HAS_ROPE", int(k_pe.shape[1] > 0)),
            ("BLOCK_SIZE", kv_cache.shape[1]),
            ("SCALE_BYTES", scale_bytes),
            ("ROPE_BYTES", rope_bytes),
        ),
    )

    def adapt(launch: Launch) -> Launch:
        def launch_tiles(kv_c: int, k_pe: int, kv_cache: int, slots: int, scale: int) -> None:
            launch(kv_c, k_pe, kv_cache, kv_cache + SCALES_AT, kv_cache + ROPE_AT, slots)

        return launch_tiles

    plan = Plan(kernel, sizes, kv_c.shape[1] + k_pe.shape[1], choose_tile, adapt)
    parts = kv_cache, kv_cache[..., SCALES_AT:], kv_cache[..., ROPE_AT:]
    return plan, (kv_c, k_pe, *parts, slot_mapping), slot_mapping.shape[0]


def _get_sizes(kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor) -> tuple[int, ...]:
    """Return the number of slots, then strides in items; 0 for a dim of size 1, which is arbitrary."""
    shape = kv_cache.shape[:2]
    strides = [s if n > 1 else 0 for n, s in zip(shape, kv_cache.stride(), strict=False)]
    return (shape[0] * shape[1], kv_c.stride(0), k_pe.stride(0), *strides)


def choose_tile(plan: Plan, num_tokens: int, gpu: Gpu, options: Options) -> Tile:
    """Return a tile of whole rows: of 16 bytes a thread, or 8 items that are converted, or twice that.

    Raises:
        Unsupported: The options would split rows, or the tile is too large.
    """
    if options.tile_columns is not None:
        raise Unsupported("impl.tile_columns has no meaning where a program moves whole rows")
    widths = dict(plan.kernel.constants)
    columns = triton.next_power_of_2(widths.get("WIDTH", SCALES_AT))
    rope_columns = triton.next_power_of_2(max(1, widths.get("ROPE_WIDTH", 1)))
    copied = plan.kernel.pointers[0].removeprefix("*i")
    per_thread = FP8_ITEMS if plan.kernel.converts else 8 * VECTOR_BYTES // int(copied)
    items = THREADS * per_thread * (2 if is_large(plan, num_tokens, gpu) else 1)
    tokens = options.tile_tokens or max(1, items // columns)
    if tokens * (columns + rope_columns) > MOST_TILE_ITEMS:
        raise Unsupported(
            f"a tile of {tokens} x {columns + rope_columns} items is more than {MOST_TILE_ITEMS}"
        )
    own = (("COLUMNS", columns), ("ROPE_COLUMNS", rope_columns)) if "WIDTH" in widths else ()
    return Tile(tokens, 1, (*own, ("TOKENS", tokens)))


@triton.jit
def _rows_of(slot, block_stride, token_stride, BLOCK_SIZE: tl.constexpr):
    """Return where the slots' rows begin, from the start of the cache."""
    return (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * token_stride


@triton.jit
def concat(
    kv_c_ptr,  # [>= num_tokens, WIDTH]
    k_pe_ptr,  # [>= num_tokens, ROPE_WIDTH]
    kv_cache_ptr,  # [num_blocks, BLOCK_SIZE, WIDTH + ROPE_WIDTH], last dim contiguous
    slot_mapping_ptr,  # int64 [num_tokens]
    scale_ptr,  # float32, one element; read when FP8
    num_tokens,
    num_slots,
    kv_c_stride,
    k_pe_stride,
    block_stride,
    token_stride,
    WIDTH: tl.constexpr,
    ROPE_WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROPE_COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Write kv_c and k_pe of TOKENS tokens; grid ceil(num_tokens / TOKENS)."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, COLUMNS)[None, :]
    rope_column = tl.arange(0, ROPE_COLUMNS)[None, :]
    known = token < num_tokens

    in_row = known[:, None] & (column < WIDTH)
    kv_c = tl.load(kv_c_ptr + (token * kv_c_stride)[:, None] + column, mask=in_row)
    if ROPE_WIDTH > 0:
        in_rope = known[:, None] & (rope_column < ROPE_WIDTH)
        k_pe = tl.load(k_pe_ptr + (token * k_pe_stride)[:, None] + rope_column, mask=in_rope)
    # Loaded after the rows, which do not wait for it.
    slot = tl.load(slot_mapping_ptr + token, mask=known, other=-1)

    written = ((slot >= 0) & (slot < num_slots))[:, None]
    row = _rows_of(slot, block_stride, token_stride, BLOCK_SIZE)[:, None]
    kv_c = cache_items(kv_c, 0, scale_ptr, kv_cache_ptr, WIDTH, WIDTH, FP8, False)
    tl.store(kv_cache_ptr + row + column, kv_c, mask=written & (column < WIDTH))
    if ROPE_WIDTH > 0:
        k_pe = cache_items(k_pe, 0, scale_ptr, kv_cache_ptr, ROPE_WIDTH, ROPE_WIDTH, FP8, False)
        place = row + WIDTH + rope_column
        tl.store(kv_cache_ptr + place, k_pe, mask=written & (rope_column < ROPE_WIDTH))


@triton.jit
def quantize_tiles(
    kv_c_ptr,  # [>= num_tokens, 512], items of 2 bytes
    k_pe_ptr,  # [>= num_tokens, 64] as words of ROPE_BYTES; read when HAS_ROPE, else zeros are written
    codes_ptr,  # bytes [num_blocks, BLOCK_SIZE, 656]
    scales_ptr,  # the same from byte 512 on, as words of SCALE_BYTES
    rope_ptr,  # the same from byte 528 on, as words of ROPE_BYTES
    slot_mapping_ptr,  # int64 [num_tokens]
    num_tokens,
    num_slots,
    kv_c_stride,
    k_pe_stride,  # in words
    block_stride,  # in bytes, as token_stride
    token_stride,
    HAS_ROPE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SCALE_BYTES: tl.constexpr,
    ROPE_BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Write codes, scales and k_pe of TOKENS tokens; grid ceil(num_tokens / TOKENS)."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, 512)[None, :]
    word = tl.arange(0, 128 // ROPE_BYTES)[None, :]
    known = token < num_tokens

    items = tl.load(kv_c_ptr + (token * kv_c_stride)[:, None] + column, mask=known[:, None])
    if HAS_ROPE:
        k_pe = tl.load(k_pe_ptr + (token * k_pe_stride)[:, None] + word, mask=known[:, None])
    else:
        k_pe = tl.zeros((TOKENS, 128 // ROPE_BYTES), rope_ptr.dtype.element_ty)
    # Loaded after the rows, which do not wait for it.
    slot = tl.load(slot_mapping_ptr + token, mask=known, other=-1)

    x = tl.reshape(items.to(tl.float32), (TOKENS, 4, 128))
    size = tl.abs(x)
    amax = tl.max(tl.where(size == size, size, 0.0), axis=2)
    least = tl.maximum(tl.div_rn(amax, 448.0), 1e-4)
    # The smallest power of two that is not below, and its exact inverse; of an infinity 0.
    scale = (least.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
    inverse = tl.maximum(0x7F000000 - scale, 0).to(tl.float32, bitcast=True)
    codes = tl.reshape(x * inverse[:, :, None], (TOKENS, 512)).to(codes_ptr.dtype.element_ty)

    written = ((slot >= 0) & (slot < num_slots))[:, None]
    row = _rows_of(slot, block_stride, token_stride, BLOCK_SIZE)[:, None]
    tl.store(codes_ptr + row + column, codes, mask=written)
    tl.store(rope_ptr + row // ROPE_BYTES + word, k_pe, mask=written)
    # Words of a scale, the lowest first.
    PARTS: tl.constexpr = 4 // SCALE_BYTES
    shift = tl.arange(0, PARTS) * (8 * SCALE_BYTES)
    parts = tl.reshape(scale[:, :, None] >> shift[None, None, :], (TOKENS, 4 * PARTS))
    place = row // SCALE_BYTES + tl.arange(0, 4 * PARTS)[None, :]
    tl.store(scales_ptr + place, parts.to(scales_ptr.dtype.element_ty), mask=written)
