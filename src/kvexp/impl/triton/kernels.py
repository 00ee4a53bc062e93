"""Define the Triton kernels: a program moves a tile of tokens x columns of K, and the same tile of V.

A column is an item of a token's row: `head * head_size + place in the head`. Triton chooses the width of each
access, since it knows a divisor of each argument (`source.py`).
"""

import triton
import triton.language as tl


@triton.jit
def _quotient(x, divisor, CORRECTIONS: tl.constexpr):
    """Return `x / divisor`, exact once rounded to fp8, by the divisor's reciprocal and the exact remainder.

    One correction rounds correctly for sources of 16 bits, two for all; see src/kvexp/impl/cuda/convert.cuh.
    This needs a divisor between 2^-60 and 2^60; any other is scaled into that range, together with its
    dividend, by a power of two. A dividend that loses bits or overflows by this has a quotient that becomes 0
    or the largest number anyway.
    """
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
def _cache_items(
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
        x = _quotient(x, scale, 1 if items.dtype.primitive_bitwidth == 16 else 2)
        items = tl.reshape(x, items.shape).to(cache_ptr.dtype.element_ty)
    return items


@triton.jit
def _tile(ROW_ITEMS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return first token and first column of this program; neighbours share tokens and write whole rows."""
    tiles: tl.constexpr = (ROW_ITEMS + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    return (program // tiles).to(tl.int64) * TOKENS, program % tiles * COLUMNS


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
def _place_in_row(column, head_stride, HEAD_SIZE: tl.constexpr):
    """Return the distance of each column from the start of its slot."""
    return (column // HEAD_SIZE).to(tl.int64) * head_stride + column % HEAD_SIZE


@triton.jit
def flash(
    key_ptr,  # [>= num_tokens, NUM_HEADS, HEAD_SIZE]
    value_ptr,  # [>= num_tokens, NUM_HEADS, HEAD_SIZE_V]
    key_cache_ptr,  # [num_blocks, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE], last dim contiguous
    value_cache_ptr,  # [num_blocks, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE_V], equal strides
    slot_mapping_ptr,  # int64 [num_tokens]
    k_scale_ptr,  # float32, one element or one for each head; read when FP8
    v_scale_ptr,
    num_tokens,
    num_slots,
    key_stride,
    value_stride,
    block_stride,
    token_stride,
    head_stride,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_SIZE_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8: tl.constexpr,
    PER_HEAD: tl.constexpr,
    SLOT_FIRST: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write caches of any strides; grid ceil(num_tokens / TOKENS) * ceil(row / COLUMNS).

    The compiler merges what K and V have in common: with equal head sizes, places and masks.
    """
    KEY_ITEMS: tl.constexpr = NUM_HEADS * HEAD_SIZE
    VALUE_ITEMS: tl.constexpr = NUM_HEADS * HEAD_SIZE_V
    first_token, first_column = _tile(max(KEY_ITEMS, VALUE_ITEMS), TOKENS, COLUMNS)
    token = first_token + tl.arange(0, TOKENS)
    column = first_column + tl.arange(0, COLUMNS)
    in_key = (column < KEY_ITEMS)[None, :]
    in_value = (column < VALUE_ITEMS)[None, :]
    known = token < num_tokens

    read = known
    if SLOT_FIRST:
        slot = tl.load(slot_mapping_ptr + token, mask=known, other=-1)
        read = (slot >= 0) & (slot < num_slots)
    key_item = (token * key_stride)[:, None] + column[None, :]
    value_item = (token * value_stride)[:, None] + column[None, :]
    key = tl.load(key_ptr + key_item, mask=read[:, None] & in_key)
    value = tl.load(value_ptr + value_item, mask=read[:, None] & in_value)
    if not SLOT_FIRST:
        # Loaded after the rows, which do not wait for it.
        slot = tl.load(slot_mapping_ptr + token, mask=known, other=-1)

    written = (slot >= 0) & (slot < num_slots)
    row = ((slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * token_stride)[:, None]
    key_place = row + _place_in_row(column, head_stride, HEAD_SIZE)[None, :]
    value_place = row + _place_in_row(column, head_stride, HEAD_SIZE_V)[None, :]
    key = _cache_items(key, first_column, k_scale_ptr, key_cache_ptr, KEY_ITEMS, HEAD_SIZE, FP8, PER_HEAD)
    value = _cache_items(
        value, first_column, v_scale_ptr, value_cache_ptr, VALUE_ITEMS, HEAD_SIZE_V, FP8, PER_HEAD
    )
    tl.store(key_cache_ptr + key_place, key, mask=written[:, None] & in_key)
    tl.store(value_cache_ptr + value_place, value, mask=written[:, None] & in_value)


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
    key = _cache_items(key, first_column, k_scale_ptr, key_cache_ptr, ROW_ITEMS, HEAD_SIZE, FP8, PER_HEAD)
    value = _cache_items(
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
