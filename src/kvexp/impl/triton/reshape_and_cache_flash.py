"""Write caches of any strides: a program moves a tile of tokens x columns of K, and the same tile of V.

A column is an item of a token's row: `head * head_size + place in the head`. Triton chooses the width of each
access, since it knows a divisor of each argument (`source.Kernel`).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from typing import Any

import triton
import triton.language as tl

from kvexp.impl.triton.convert import cache_items
from kvexp.impl.triton.source import VECTOR_BYTES, Fit, Gpu, Options, Plan, Tile, Write, make_tile

THREADS = 128
"""Threads of a program with the default number of warps."""

FP8_ITEMS = 8
"""Items per thread that are converted to fp8, in the smaller tile."""

SM_THREADS = 2048
"""Most threads of a multiprocessor, on most GPUs."""

FILLED = 3
"""How many times accesses must fill the GPU before rows are read after their slots."""


def fit(*arguments: Any) -> Fit:
    """Fit the kernel to caches of the shape `[num_blocks, block_size, num_heads, head_size]`."""
    call = Write(*arguments)
    _, num_heads, head_size = call.key.shape
    head_size_v = call.value.shape[2]
    shape = call.key_cache.shape[:3]
    # The stride of a dim of size 1 is arbitrary, and is only multiplied by 0.
    strides = [s if n > 1 else 0 for n, s in zip(shape, call.key_cache.stride(), strict=False)]
    sizes = (shape[0] * shape[1], call.key.stride(0), call.value.stride(0), *strides)
    heads = {"NUM_HEADS": num_heads, "HEAD_SIZE": head_size, "HEAD_SIZE_V": head_size_v}
    row_items = num_heads * max(head_size, head_size_v)
    return call.fit(flash, sizes, heads | {"BLOCK_SIZE": shape[1]}, row_items, choose_tile)


def choose_tile(plan: Plan, num_tokens: int, gpu: Gpu, options: Options) -> Tile:
    """Return a tile where each thread has one access of 16 bytes to K and one to V, or 8 items that become
    fp8; in the larger tile twice that.
    """
    per_thread = FP8_ITEMS if plan.kernel.converts else VECTOR_BYTES // _get_copied_bytes(plan)
    items = THREADS * per_thread * (2 if is_large(plan, num_tokens, gpu) else 1)
    slot_first = options.slot_first
    if slot_first is None:
        slot_first = waits_for_slots(plan, num_tokens, gpu)
    return make_tile(plan.row_items, items, items, options, SLOT_FIRST=int(slot_first))


def is_large(plan: Plan, num_tokens: int, gpu: Gpu) -> bool:
    """Return whether larger tiles are faster: they fill the GPU four times, and the L2 holds the written
    bytes. Beyond that the memory is the bottleneck, and more programs hide more of its latency.

    Conversion to fp8 is bound by arithmetic, of which larger tiles save some once they fill a quarter of the
    GPU.
    """
    items = num_tokens * plan.row_items
    if plan.kernel.converts:
        return 4 * items >= FP8_ITEMS * gpu.sm_count * SM_THREADS
    return gpu.is_filled(items) and 2 * items * _get_copied_bytes(plan) <= gpu.l2_bytes // 2


def waits_for_slots(plan: Plan, num_tokens: int, gpu: Gpu) -> bool:
    """Return whether rows are read only after their slots, so that rows of padding are not read.

    Every other row then waits for two memory accesses in sequence. Where copies in accesses of 16 bytes to
    K and to V fill the GPU many times, other programs hide the latency; conversion to fp8 would take 9 %
    longer.
    """
    if plan.kernel.converts:
        return False
    accesses = num_tokens * plan.row_items * _get_copied_bytes(plan) // VECTOR_BYTES
    return accesses >= FILLED * gpu.sm_count * SM_THREADS


def _get_copied_bytes(plan: Plan) -> int:
    """Return the bytes of an item that is copied, from `*i16` and the like."""
    return int(plan.kernel.pointers[0].removeprefix("*i")) // 8


@triton.jit
def _tile(ROW_ITEMS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return first token and first column of this program; neighbours share tokens and write whole rows."""
    tiles: tl.constexpr = (ROW_ITEMS + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    return (program // tiles).to(tl.int64) * TOKENS, program % tiles * COLUMNS


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
    key = cache_items(key, first_column, k_scale_ptr, key_cache_ptr, KEY_ITEMS, HEAD_SIZE, FP8, PER_HEAD)
    value = cache_items(
        value, first_column, v_scale_ptr, value_cache_ptr, VALUE_ITEMS, HEAD_SIZE_V, FP8, PER_HEAD
    )
    tl.store(key_cache_ptr + key_place, key, mask=written[:, None] & in_key)
    tl.store(value_cache_ptr + value_place, value, mask=written[:, None] & in_value)
