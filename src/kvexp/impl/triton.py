"""triton: the same ops in Triton, NHD and HND alike.

`TRITON_INTERPRET=1` must be in the environment before this module is imported for a CPU: Triton reads it when
`@triton.jit` decorates. The measuring process of a CPU device sets it.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.op import Call

TILE_ITEMS = 4096
"""Items of K, and of V, that one program moves when there are many tokens."""

FEW_ITEMS = 1024
"""The same when there are too few tokens to fill the GPU."""


@triton.jit
def _cache_items(items, scale_ptr, cache_ptr, FP8: tl.constexpr):
    """Source items as cache items; fp8 divides in float32 and rounds once.

    tl.div_rn is IEEE division; Triton's `/` is not.
    """
    if FP8:
        items = tl.div_rn(items.to(tl.float32), tl.load(scale_ptr)).to(cache_ptr.dtype.element_ty)
    return items


@triton.jit
def reshape_and_cache_flash_kernel(
    key_ptr,  # [>= num_tokens, NUM_HEADS, HEAD_SIZE]
    value_ptr,  # the same
    key_cache_ptr,  # [num_blocks, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE], last dim contiguous
    value_cache_ptr,  # the same, equal strides
    slot_mapping_ptr,  # int64 [num_tokens]
    k_scale_ptr,  # float32, one element; read when FP8
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
    BLOCK_SIZE: tl.constexpr,
    FP8: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """TOKENS tokens x COLUMNS items of their rows; grid (ceil(num_tokens / TOKENS), ceil(row / COLUMNS))."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = column < NUM_HEADS * HEAD_SIZE
    here = (token < num_tokens)[:, None] & in_row[None, :]

    # Loads first: they do not wait for the slots.
    key = tl.load(key_ptr + (token * key_stride)[:, None] + column[None, :], mask=here)
    value = tl.load(value_ptr + (token * value_stride)[:, None] + column[None, :], mask=here)
    slot = tl.load(slot_mapping_ptr + token, mask=token < num_tokens, other=-1)

    written = here & ((slot >= 0) & (slot < num_slots))[:, None]
    row = (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * token_stride
    head = (column // HEAD_SIZE).to(tl.int64)
    place = row[:, None] + (head * head_stride + column % HEAD_SIZE)[None, :]
    key = _cache_items(key, k_scale_ptr, key_cache_ptr, FP8)
    value = _cache_items(value, v_scale_ptr, value_cache_ptr, FP8)
    tl.store(key_cache_ptr + place, key, mask=written)
    tl.store(value_cache_ptr + place, value, mask=written)


def tile(num_tokens: int, row_items: int, sm_count: int) -> tuple[int, int]:
    """Tokens and columns of one program.

    A tile is at most one row wide. With few tokens it is small, so that every multiprocessor gets one; with
    many it is large, so that each thread has several accesses in flight.
    """
    items = TILE_ITEMS if num_tokens * row_items >= TILE_ITEMS * sm_count * 4 else FEW_ITEMS
    columns = min(items, triton.next_power_of_2(row_items))
    return items // columns, columns


class Triton:
    """The ops in Triton; interpreted on a CPU, where they can be verified and not timed."""

    name = "triton"

    def __init__(self, device: str) -> None:
        self.device = device
        self.interpreted = not device.startswith("cuda")
        if self.interpreted and os.environ.get("TRITON_INTERPRET") != "1":
            raise Unsupported("impl=triton on a CPU needs TRITON_INTERPRET=1 in the environment")
        self.untimed = "interpreted: Triton's interpreter is no measure of the kernel" * self.interpreted
        self.sm_count, self.capability = 1, (0, 0)
        if not self.interpreted:
            properties = torch.cuda.get_device_properties(torch.device(device))
            self.sm_count = properties.multi_processor_count
            self.capability = (properties.major, properties.minor)

    def reshape_and_cache_flash(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor,
        v_scale: Tensor,
    ) -> Call:
        """`op.reshape_and_cache_flash` bound to these tensors."""
        fp8 = kv_cache_dtype != "auto"
        if fp8:
            self._check_fp8()
            key_cache = key_cache.view(torch.float8_e4m3fn)
            value_cache = value_cache.view(torch.float8_e4m3fn)
        num_tokens = slot_mapping.shape[0]
        _, num_heads, head_size = key.shape
        num_blocks, block_size = key_cache.shape[:2]
        row_items = num_heads * head_size
        tokens, columns = tile(num_tokens, row_items, self.sm_count)
        grid = (triton.cdiv(num_tokens, tokens), triton.cdiv(row_items, columns))
        arguments = (
            key,
            value,
            key_cache,
            value_cache,
            slot_mapping,
            k_scale,
            v_scale,
            num_tokens,
            num_blocks * block_size,
            key.stride(0),
            value.stride(0),
            *key_cache.stride()[:3],
        )
        constants = {
            "NUM_HEADS": num_heads,
            "HEAD_SIZE": head_size,
            "BLOCK_SIZE": block_size,
            "FP8": fp8,
            "TOKENS": tokens,
            "COLUMNS": columns,
            "num_warps": 4,
        }

        def call() -> None:
            if num_tokens:
                reshape_and_cache_flash_kernel[grid](*arguments, **constants)

        return call

    def _check_fp8(self) -> None:
        if self.interpreted:
            raise Unsupported(
                "impl=triton with an fp8 cache needs a GPU: Triton's interpreter converts to fp8 wrongly"
            )
        if self.capability < (9, 0):
            raise Unsupported(
                "impl=triton with an fp8 cache needs compute capability 9.0, where its conversion is "
                f"exact; this GPU has {self.capability[0]}.{self.capability[1]}"
            )
