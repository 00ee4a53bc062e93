"""Read the pasts of sequences in parts: a program attends the query heads of one KV head to one part.

Parts (split-KV) let few sequences fill a GPU. Each leaves its sums, weighted by its own maximum, in a
workspace of float32; a second kernel adds them up. One part writes the output itself.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvexp.op import Call
from kvexp.op.quantize import FORMATS

if TYPE_CHECKING:
    from kvexp.impl.triton import Triton

LEAST_HEADS = 16
"""Rows of the smallest matrix that tensor cores multiply; further query heads are left empty."""
TILE_TOKENS = 64
"""Tokens that a program reads at once."""
PROGRAMS_PER_SM = 4
"""Programs that a GPU's multiprocessors should have, in all of a call's parts."""
LEAST_PART = 256
"""Tokens below which a part is not cut further."""
MOST_PARTS = 64
KINDS = ("FP8", "PER_HEAD")
LOG2E = 1 / math.log(2)


def bind(
    impl: "Triton",
    output: Tensor,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor,
    v_scale: Tensor,
) -> Call:
    """Bind the op to these tensors."""
    if kv_cache_dtype != "auto":
        kind = FORMATS[kv_cache_dtype].dtype
        key_cache, value_cache = key_cache.view(kind), value_cache.view(kind)
    num_seqs, num_query_heads, head_size = query.shape
    _, block_size, num_heads, head_size_v = value_cache.shape
    parts = choose_parts(num_seqs * num_heads, block_table.shape[1] * block_size, impl.gpu.sm_count)
    sums = torch.empty(
        (num_seqs, num_query_heads, parts, head_size_v + 2), dtype=torch.float32, device=query.device
    )
    constants = make_constants(num_query_heads // num_heads, head_size, head_size_v, kv_cache_dtype, k_scale)
    constants |= {"BLOCK_SIZE": block_size, "PARTS": parts}
    # Triton's interpreter multiplies the bits of bfloat16.
    constants |= {"FACTOR": tl.float32 if impl.interpreted else None}
    shared = {name: constants[name] for name in ("SCALE", "GROUP", "HEAD_SIZE_V", "WIDTH_V", *KINDS, "PARTS")}
    launch = {} if impl.interpreted else impl.options.compiler_options
    strides = (*key_cache.stride()[:3], *value_cache.stride()[:3], block_table.stride(0))
    tensors = (output, sums, query, key_cache, value_cache, block_table, seq_lens, k_scale, v_scale)

    def call() -> None:
        attend[num_seqs, num_heads, parts](*tensors, *strides, **constants, **launch)
        if parts > 1:
            add_parts[num_seqs, num_query_heads](output, sums, k_scale, **shared, **launch)

    return call


def choose_parts(programs: int, most_tokens: int, sm_count: int) -> int:
    """Return into how many parts pasts are cut: a power of two, so that programs fill the GPU."""
    wanted = -(-PROGRAMS_PER_SM * sm_count // programs)
    most = min(MOST_PARTS, -(-most_tokens // LEAST_PART))
    return 1 << (max(1, min(wanted, most)) - 1).bit_length()


def make_constants(
    group: int, head_size: int, head_size_v: int, kv_cache_dtype: str, scale: Tensor
) -> dict[str, Any]:
    """Return the constants of `attend` but for the cache's blocks and the parts."""
    return {
        "SCALE": LOG2E / math.sqrt(head_size),
        "GROUP": group,
        "HEADS": max(LEAST_HEADS, triton.next_power_of_2(group)),
        "HEAD_SIZE": head_size,
        "HEAD_SIZE_V": head_size_v,
        "WIDTH": max(16, triton.next_power_of_2(head_size)),
        "WIDTH_V": max(16, triton.next_power_of_2(head_size_v)),
        "TOKENS": TILE_TOKENS,
        "FP8": kv_cache_dtype != "auto",
        "PER_HEAD": scale.numel() > 1,
    }


@triton.jit
def _get_scale(scale_ptr, head, SCALE: tl.constexpr, FP8: tl.constexpr, PER_HEAD: tl.constexpr):
    """Return SCALE, of an fp8 cache times the head's scale."""
    scale = tl.full((), SCALE, tl.float32)
    if FP8:
        scale = SCALE * tl.load(scale_ptr + (head if PER_HEAD else 0))
    return scale


@triton.jit
def attend(
    output_ptr,  # [num_seqs, num_query_heads, HEAD_SIZE_V]
    sums_ptr,  # float32 [num_seqs, num_query_heads, PARTS, HEAD_SIZE_V + 2]: sums, their weight, the maximum
    query_ptr,  # [num_seqs, num_query_heads, HEAD_SIZE]
    key_cache_ptr,  # [num_blocks, BLOCK_SIZE, num_heads, HEAD_SIZE], last dim contiguous
    value_cache_ptr,  # [num_blocks, BLOCK_SIZE, num_heads, HEAD_SIZE_V], last dim contiguous
    block_table_ptr,  # int32 [num_seqs, blocks]
    seq_lens_ptr,  # int32 [num_seqs]
    k_scale_ptr,  # float32, one element or one for each head; read when FP8
    v_scale_ptr,
    key_block_stride,
    key_token_stride,
    key_head_stride,
    value_block_stride,
    value_token_stride,
    value_head_stride,
    table_stride,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_SIZE_V: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    TOKENS: tl.constexpr,
    FP8: tl.constexpr,
    PER_HEAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Attend one sequence's query heads of one KV head to one part; grid num_seqs, num_heads, PARTS."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(seq_lens_ptr + sequence)
    # Parts are whole tiles.
    part_tokens = tl.cdiv(tl.cdiv(length, TOKENS), PARTS) * TOKENS
    begin = part * part_tokens
    end = tl.minimum(begin + part_tokens, length)

    row = tl.arange(0, HEADS)
    element = tl.arange(0, WIDTH)
    element_v = tl.arange(0, WIDTH_V)
    of_query = (sequence * tl.num_programs(1) + head) * GROUP + row
    known = (row < GROUP)[:, None]
    query = tl.load(
        query_ptr + of_query[:, None] * HEAD_SIZE + element[None, :],
        mask=known & (element < HEAD_SIZE)[None, :],
        other=0.0,
    )
    factor: tl.constexpr = query.dtype if FACTOR is None else FACTOR
    query = query.to(factor)
    scale = _get_scale(k_scale_ptr, head, SCALE, FP8, PER_HEAD)
    value_scale = _get_scale(v_scale_ptr, head, 1.0, FP8, PER_HEAD)

    maximum = tl.full((HEADS,), float("-inf"), tl.float32)
    weight = tl.zeros((HEADS,), tl.float32)
    sums = tl.zeros((HEADS, WIDTH_V), tl.float32)
    for first in range(begin, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        read = token < end
        block = tl.load(block_table_ptr + sequence * table_stride + token // BLOCK_SIZE, mask=read, other=0)
        block = block.to(tl.int64)
        offset = token % BLOCK_SIZE
        key_row = block * key_block_stride + offset * key_token_stride + head * key_head_stride
        value_row = block * value_block_stride + offset * value_token_stride + head * value_head_stride
        key = tl.load(
            key_cache_ptr + key_row[None, :] + element[:, None],
            mask=read[None, :] & (element < HEAD_SIZE)[:, None],
            other=0.0,
        ).to(factor)
        value = tl.load(
            value_cache_ptr + value_row[:, None] + element_v[None, :],
            mask=read[:, None] & (element_v < HEAD_SIZE_V)[None, :],
            other=0.0,
        ).to(factor)
        products = tl.dot(query, key, input_precision="ieee")
        products = tl.where(read[None, :], products, float("-inf"))
        higher = tl.maximum(maximum, tl.max(products, 1))
        # Scaled once their maximum is subtracted: large exponents would lose bits.
        powers = tl.exp2((products - higher[:, None]) * scale)
        shrink = tl.exp2((maximum - higher) * scale)
        weight = weight * shrink + tl.sum(powers, 1)
        sums = sums * shrink[:, None]
        sums += tl.dot(powers.to(factor), value, input_precision="ieee")
        maximum = higher

    sums = sums * value_scale
    written = known & (element_v < HEAD_SIZE_V)[None, :]
    if PARTS == 1:
        place = of_query[:, None] * HEAD_SIZE_V + element_v[None, :]
        tl.store(output_ptr + place, (sums / weight[:, None]).to(output_ptr.dtype.element_ty), mask=written)
    else:
        row_at = (of_query * PARTS + part) * (HEAD_SIZE_V + 2)
        tl.store(sums_ptr + row_at[:, None] + element_v[None, :], sums, mask=written)
        tl.store(sums_ptr + row_at + HEAD_SIZE_V, weight, mask=row < GROUP)
        tl.store(sums_ptr + row_at + HEAD_SIZE_V + 1, maximum, mask=row < GROUP)


@triton.jit
def add_parts(
    output_ptr,  # [num_seqs, num_query_heads, HEAD_SIZE_V]
    sums_ptr,  # as of `attend`
    k_scale_ptr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE_V: tl.constexpr,
    WIDTH_V: tl.constexpr,
    FP8: tl.constexpr,
    PER_HEAD: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Add the parts of one output; grid num_seqs, num_query_heads."""
    of_query = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    part = tl.arange(0, PARTS)
    element = tl.arange(0, WIDTH_V)
    row_at = sums_ptr + (of_query * PARTS + part) * (HEAD_SIZE_V + 2)
    weight = tl.load(row_at + HEAD_SIZE_V)
    maximum = tl.load(row_at + HEAD_SIZE_V + 1)
    # A part behind the sequence's end has the weight 0 and the maximum -inf; the first has a token.
    scale = _get_scale(k_scale_ptr, tl.program_id(1) // GROUP, SCALE, FP8, PER_HEAD)
    factor = tl.exp2((maximum - tl.max(maximum, 0)) * scale)
    sums = tl.load(row_at[:, None] + element[None, :], mask=(element < HEAD_SIZE_V)[None, :], other=0.0)
    total = tl.sum(sums * factor[:, None], 0) / tl.sum(weight * factor, 0)
    place = output_ptr + of_query * HEAD_SIZE_V + element
    tl.store(place, total.to(output_ptr.dtype.element_ty), mask=element < HEAD_SIZE_V)
