"""Write head-major caches: a program moves a tile of tokens x columns of K, and the same tile of V.

A column is an item of a token's row: `head * head_size + place in the head`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from typing import Any

import triton
import triton.language as tl

from kvexp.impl.triton.convert import cache_items
from kvexp.impl.triton.source import LARGE_ITEMS, Fit, Gpu, Options, Plan, Tile, Write, make_tile

TILES = ((1024, 64), (LARGE_ITEMS, 128))
"""Tiles for few and for many tokens: items of K, and of V, and the most columns.

The kernel reads along columns and writes along tokens, so its tiles are wide in both; with few tokens they
are small, so that every multiprocessor gets one.
"""


def fit(*arguments: Any) -> Fit:
    """Fit the kernel to head-major caches, K's in groups of `x` items of a token."""
    call = Write(*arguments)
    _, num_heads, head_size = call.key.shape
    num_blocks, _, _, block_size, x = call.key_cache.shape
    strides = (call.key_cache.stride(0), call.value_cache.stride(0)) if num_blocks > 1 else (0, 0)
    sizes = (num_blocks * block_size, call.key.stride(0), call.value.stride(0), *strides)
    row_items = num_heads * head_size
    constants = {"ROW_ITEMS": row_items, "HEAD_SIZE": head_size, "BLOCK_SIZE": block_size, "X": x}
    return call.fit(head_major, sizes, constants, row_items, choose_tile)


def choose_tile(plan: Plan, num_tokens: int, gpu: Gpu, options: Options) -> Tile:
    """Return a large tile where such tiles fill the GPU four times, else a small one."""
    items, widest = TILES[gpu.is_filled(num_tokens * plan.row_items)]
    return make_tile(plan.row_items, items, widest, options, run=dict(plan.kernel.constants)["X"])


@triton.jit
def _tile_by_columns(num_tokens, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the same for neighbours that share columns: tokens whose slots share sectors then write at about
    the same time, wherever they are in the call, and L2 merges the writes.
    """
    tiles = tl.cdiv(num_tokens, TOKENS)
    program = tl.program_id(0)
    # With 32 bits Triton's kernel takes 5 % longer where slots are contiguous.
    return (program % tiles).to(tl.int64) * TOKENS, (program // tiles).to(tl.int32) * COLUMNS


@triton.jit
def _flat(items, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Broadcast the items to `[ROWS, LANES]` and flatten, so that a warp's lanes run along the second dim.

    Triton's versions differ in the dim that a warp runs along when neither has adjacent addresses.
    """
    return tl.reshape(tl.broadcast_to(items, (ROWS, LANES)), (ROWS * LANES,))


@triton.jit
def _store_keys(
    key,  # [TOKENS, COLUMNS], cache items
    first_column,
    key_cache_ptr,
    slot,
    written,
    key_block_stride,
    ROW_ITEMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    X: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store runs of X items of a token; consecutive slots of a block are consecutive runs of the cache."""
    GROUPS: tl.constexpr = COLUMNS // X
    runs = tl.permute(tl.reshape(key, (TOKENS, GROUPS, X)), (1, 0, 2))
    group = first_column // X + tl.arange(0, GROUPS)
    # A reshape hides the divisors of its items, so the multiplications come after it.
    block = _flat((slot // BLOCK_SIZE)[None, :], GROUPS, TOKENS)
    run = _flat((slot % BLOCK_SIZE)[None, :] + (group.to(tl.int64) * BLOCK_SIZE)[:, None], GROUPS, TOKENS)
    mask = _flat(written[None, :] & (group < ROW_ITEMS // X)[:, None], GROUPS, TOKENS)
    place = (block * key_block_stride + run * X)[:, None] + tl.arange(0, X)[None, :]
    tl.store(key_cache_ptr + place, tl.reshape(runs, (GROUPS * TOKENS, X)), mask=mask[:, None])


@triton.jit
def _store_values(
    value,  # [TOKENS, COLUMNS], cache items
    first_column,
    value_cache_ptr,
    first_slot,
    slot,
    followers,
    num_slots,
    value_block_stride,
    ROW_ITEMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    X: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store X tokens' items of a column at once where the slots are aligned runs, otherwise item by item.

    Lanes run along tokens where most slots follow their neighbour's, so that they fill sectors; otherwise
    along columns, so that they write neighbouring sectors.
    """
    column = first_column + tl.arange(0, COLUMNS)
    in_row = column < ROW_ITEMS
    place = column.to(tl.int64) * BLOCK_SIZE
    inside = (first_slot >= 0) & (first_slot <= num_slots - TOKENS)
    row = (slot // BLOCK_SIZE) * value_block_stride + slot % BLOCK_SIZE
    written = (slot >= 0) & (slot < num_slots)
    if (followers == TOKENS - 1) & inside & (first_slot % X == 0):
        # Computed from one slot, so that the compiler sees which items are neighbours.
        run = first_slot // X * X + tl.arange(0, TOKENS)
        run_row = (run // BLOCK_SIZE) * value_block_stride + run % BLOCK_SIZE
        tl.store(value_cache_ptr + (run_row[None, :] + place[:, None]), tl.trans(value), mask=in_row[:, None])
    elif 2 * followers > TOKENS - 1:
        along_tokens = _flat(row[None, :] + place[:, None], COLUMNS, TOKENS)
        mask = _flat(written[None, :] & in_row[:, None], COLUMNS, TOKENS)
        tl.store(value_cache_ptr + along_tokens, _flat(tl.trans(value), COLUMNS, TOKENS), mask=mask)
    else:
        along_columns = _flat(row[:, None] + place[None, :], TOKENS, COLUMNS)
        mask = _flat(written[:, None] & in_row[None, :], TOKENS, COLUMNS)
        tl.store(value_cache_ptr + along_columns, _flat(value, TOKENS, COLUMNS), mask=mask)


@triton.jit
def head_major(
    key_ptr,  # [>= num_tokens, num_heads, HEAD_SIZE], rows of ROW_ITEMS
    value_ptr,  # the same
    key_cache_ptr,  # [num_blocks, num_heads, HEAD_SIZE / X, BLOCK_SIZE, X], contiguous inside a block
    value_cache_ptr,  # [num_blocks, num_heads, HEAD_SIZE, BLOCK_SIZE], contiguous inside a block
    slot_mapping_ptr,  # int64 [num_tokens]
    k_scale_ptr,  # float32, one element or one for each head; read when FP8
    v_scale_ptr,
    num_tokens,
    num_slots,
    key_stride,
    value_stride,
    key_block_stride,
    value_block_stride,
    ROW_ITEMS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    X: tl.constexpr,
    FP8: tl.constexpr,
    PER_HEAD: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the head-major caches; grid ceil(num_tokens / TOKENS) * ceil(ROW_ITEMS / COLUMNS).

    Places do not depend on heads: X divides HEAD_SIZE, so column c of a row is item c % X of group c // X of
    K's block, and row c of V's. Rows are read along columns and the caches written mostly along tokens; the
    compiler transposes the tile in between, through shared memory.
    """
    first_token, first_column = _tile_by_columns(num_tokens, TOKENS, COLUMNS)
    token = first_token + tl.arange(0, TOKENS)
    column = first_column + tl.arange(0, COLUMNS)
    in_row = column < ROW_ITEMS
    here = (token < num_tokens)[:, None] & in_row[None, :]
    key = tl.load(key_ptr + (token * key_stride)[:, None] + column[None, :], mask=here)
    value = tl.load(value_ptr + (token * value_stride)[:, None] + column[None, :], mask=here)
    slot = tl.load(slot_mapping_ptr + token, mask=token < num_tokens, other=-1)
    first_slot = tl.load(slot_mapping_ptr + first_token)
    second = (token > first_token) & (token < num_tokens)
    before = tl.load(slot_mapping_ptr + token - 1, mask=second, other=-1)
    followers = tl.sum((second & (slot == before + 1)).to(tl.int32), 0)

    written = (slot >= 0) & (slot < num_slots)
    key = cache_items(key, first_column, k_scale_ptr, key_cache_ptr, ROW_ITEMS, HEAD_SIZE, FP8, PER_HEAD)
    value = cache_items(
        value, first_column, v_scale_ptr, value_cache_ptr, ROW_ITEMS, HEAD_SIZE, FP8, PER_HEAD
    )
    _store_keys(
        key, first_column, key_cache_ptr, slot, written, key_block_stride, ROW_ITEMS,
        BLOCK_SIZE, X, TOKENS, COLUMNS,
    )  # fmt: skip
    _store_values(
        value, first_column, value_cache_ptr, first_slot, slot, followers, num_slots, value_block_stride,
        ROW_ITEMS, BLOCK_SIZE, X, TOKENS, COLUMNS,
    )  # fmt: skip
