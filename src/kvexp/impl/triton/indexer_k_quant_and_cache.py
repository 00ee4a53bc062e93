"""Write an indexer's keys: a program converts whole keys of some tokens, and stores codes and scales."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.gpu.launch import Launch
from kvexp.impl.triton.convert import quotient_of
from kvexp.impl.triton.reshape_and_cache_flash import FP8_ITEMS, THREADS, is_large
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

KEY_ITEMS, SCALE_BYTES = 128, 4


def fit(k: Tensor, kv_cache: Tensor, slot_mapping: Tensor, quant_block_size: int, scale_fmt: str) -> Fit:
    """Fit a kernel to these tensors."""
    num_blocks, block_size, _ = kv_cache.shape
    block_stride = kv_cache.stride(0) if num_blocks > 1 else 0
    places = find_divisor(kv_cache.data_ptr())
    # Accesses of a scale where the cache's places allow it, else of parts of one.
    word_bytes = min(SCALE_BYTES, places, find_divisor(block_stride))
    scales_at = block_size * KEY_ITEMS
    sizes = (num_blocks * block_size, k.stride(0), block_stride)
    kernel = Kernel(
        function=quantize_keys,
        pointers=(SOURCES[k.dtype], FP8["fp8_e4m3"], f"*i{8 * word_bytes}", "*i64"),
        # torch aligns slots to their items at least; counts may be anything.
        divisors=(find_divisor(k.data_ptr()), places, places, 8, 1, 1, *map(find_divisor, sizes[1:])),
        constants=(
            ("BLOCK_SIZE", block_size),
            ("POWER_OF_TWO", int(scale_fmt == "ue8m0")),
            ("WORD_BYTES", word_bytes),
        ),
    )

    def adapt(launch: Launch) -> Launch:
        def launch_keys(k: int, kv_cache: int, slots: int) -> None:
            launch(k, kv_cache, kv_cache + scales_at, slots)

        return launch_keys

    plan = Plan(kernel, sizes, KEY_ITEMS, choose_tile, adapt)
    scales = kv_cache.view(num_blocks, -1)[:, scales_at:]
    return plan, (k, kv_cache, scales, slot_mapping), slot_mapping.shape[0]


def choose_tile(plan: Plan, num_tokens: int, gpu: Gpu, options: Options) -> Tile:
    """Return a tile of whole keys: 8 items a thread, or twice as many where they fill the GPU.

    Raises:
        Unsupported: The options would split keys, or the tile is too large.
    """
    if options.tile_columns is not None:
        raise Unsupported("impl.tile_columns has no meaning where a program moves whole rows")
    items = THREADS * FP8_ITEMS * (2 if is_large(plan, num_tokens, gpu) else 1)
    tokens = options.tile_tokens or items // KEY_ITEMS
    if tokens * KEY_ITEMS > MOST_TILE_ITEMS:
        raise Unsupported(f"a tile of {tokens} x {KEY_ITEMS} items is more than {MOST_TILE_ITEMS}")
    return Tile(tokens, 1, (("TOKENS", tokens),))


@triton.jit
def quantize_keys(
    k_ptr,  # [>= num_tokens, 128], items of 2 bytes
    codes_ptr,  # bytes [num_blocks, BLOCK_SIZE * 132]: the codes of all slots, then their scales
    scales_ptr,  # the same from the first scale on, as words of WORD_BYTES
    slot_mapping_ptr,  # int64 [num_tokens]
    num_tokens,
    num_slots,
    k_stride,
    block_stride,  # in bytes
    BLOCK_SIZE: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    WORD_BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Write codes and scales of TOKENS tokens; grid ceil(num_tokens / TOKENS)."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, 128)[None, :]
    known = token < num_tokens
    items = tl.load(k_ptr + (token * k_stride)[:, None] + column, mask=known[:, None])
    # Loaded after the rows, which do not wait for it.
    slot = tl.load(slot_mapping_ptr + token, mask=known, other=-1)

    x = items.to(tl.float32)
    size = tl.abs(x)
    amax = tl.max(tl.where(size == size, size, 0.0), axis=1)
    scale = tl.div_rn(tl.maximum(amax, 1e-4), 448.0)
    if POWER_OF_TWO:
        # The smallest power of two that is not below, by its bits; an infinity stays one.
        bits = (scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        scale = bits.to(tl.float32, bitcast=True)
        # The product with its exact inverse is the quotient; of an infinity the inverse is 0.
        inverse = tl.maximum(0x7F000000 - bits, 0).to(tl.float32, bitcast=True)
        x = x * inverse[:, None]
    else:
        x = quotient_of(x, scale[:, None], 1)
    codes = x.to(codes_ptr.dtype.element_ty)

    written = ((slot >= 0) & (slot < num_slots))[:, None]
    block = (slot // BLOCK_SIZE * block_stride)[:, None]
    offset = (slot % BLOCK_SIZE)[:, None]
    tl.store(codes_ptr + block + offset * 128 + column, codes, mask=written)
    # Words of a scale, the lowest first.
    PARTS: tl.constexpr = 4 // WORD_BYTES
    part = tl.arange(0, PARTS)[None, :]
    words = scale.to(tl.int32, bitcast=True)[:, None] >> (part * (8 * WORD_BYTES))
    place = block // WORD_BYTES + offset * PARTS + part
    tl.store(scales_ptr + place, words.to(scales_ptr.dtype.element_ty), mask=written)
