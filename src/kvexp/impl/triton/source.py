"""From the tensors of a call to the source of a compiled kernel: pure functions of dtypes, shapes, strides.

Triton's own dispatch looks at each call's arguments to decide what to compile. Here the decision is taken
once, from what all calls of a launcher have in common, so that one compiled kernel is right for all of them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource

from kvexp.impl.triton import kernels

VECTOR_BYTES = 16
"""The widest access of one thread, and so the largest divisor worth knowing."""

SOURCES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
FP8 = {"fp8_e4m3": "*fp8e4nv", "fp8_e5m2": "*fp8e5"}

MANY_ITEMS = 4096
"""Items of K, and of V, that one program moves when there are many tokens."""

FEW_ITEMS = 1024
"""The same when there are too few tokens to fill the GPU."""

WIDEST = {"flash": (MANY_ITEMS, FEW_ITEMS), "head_major": (128, 64)}
"""The most columns of a tile, with many tokens and with few.

head_major reads along columns and writes along tokens, so its tiles are wide in both.
"""


@dataclass(frozen=True)
class Kernel:
    """What a compiled kernel depends on, its tile apart.

    Attributes:
        name: Of the function in `kernels`.
        pointers: Triton's types of the pointers.
        divisors: For each pointer, then for `num_tokens` and the sizes: a power of two of at most 16 that
            divides it in every call.
        constants: The compile-time constants, in the function's order.
    """

    name: str
    pointers: tuple[str, ...]
    divisors: tuple[int, ...]
    constants: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """All that the calls of one launcher have in common.

    Attributes:
        kernel: What is compiled.
        sizes: The integers that follow `num_tokens`.
        row_items: Items of a token's row, of the longer of K and V.
    """

    kernel: Kernel
    sizes: tuple[int, ...]
    row_items: int


def copies(key: Tensor, kv_cache_dtype: str) -> bool:
    """Whether bytes are only moved: the cache holds the source's items, which fp8 sources are too."""
    return kv_cache_dtype == "auto" or key.element_size() == 1


def flash(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
) -> Plan:
    """The plan for caches of the logical shape `[num_blocks, block_size, num_heads, head_size]`."""
    _, num_heads, head_size = key.shape
    head_size_v = value.shape[2]
    num_blocks, block_size = key_cache.shape[:2]
    # The stride of a dim of size 1 is arbitrary, and multiplied by nothing but 0.
    strides = [s if n > 1 else 0 for n, s in zip(key_cache.shape[:3], key_cache.stride(), strict=False)]
    sizes = (num_blocks * block_size, key.stride(0), value.stride(0), *strides)
    constants = {
        "NUM_HEADS": num_heads,
        "HEAD_SIZE": head_size,
        "HEAD_SIZE_V": head_size_v,
        "BLOCK_SIZE": block_size,
    }
    kernel = _kernel("flash", (key, value, key_cache, value_cache), kv_cache_dtype, k_scale, sizes, constants)
    return Plan(kernel, sizes, num_heads * max(head_size, head_size_v))


def head_major(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
) -> Plan:
    """The plan for caches whose heads are outside, K's in groups of `x` items of a token."""
    _, num_heads, head_size = key.shape
    num_blocks, _, _, block_size, x = key_cache.shape
    strides = (key_cache.stride(0), value_cache.stride(0)) if num_blocks > 1 else (0, 0)
    sizes = (num_blocks * block_size, key.stride(0), value.stride(0), *strides)
    constants = {
        "ROW_ITEMS": num_heads * head_size,
        "HEAD_SIZE": head_size,
        "BLOCK_SIZE": block_size,
        "X": x,
    }
    tensors = (key, value, key_cache, value_cache)
    kernel = _kernel("head_major", tensors, kv_cache_dtype, k_scale, sizes, constants)
    return Plan(kernel, sizes, num_heads * head_size)


def _kernel(
    name: str,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    sizes: tuple[int, ...],
    constants: dict[str, int],
) -> Kernel:
    key, value, key_cache, value_cache = tensors
    copy = copies(key, kv_cache_dtype)
    # A copy moves integers, so that one kernel serves all types of a width and no NaN is touched.
    source = f"*i{8 * key.element_size()}" if copy else SOURCES[key.dtype]
    cache = source if copy else FP8[kv_cache_dtype]
    # Which of the two is aligned may change from call to call; what divides both does not.
    rows = _divisor(key.data_ptr() | value.data_ptr())
    places = _divisor(key_cache.data_ptr() | value_cache.data_ptr())
    _num_slots, *strides = sizes
    per_head = not copy and k_scale is not None and k_scale.numel() > 1
    return Kernel(
        name=name,
        pointers=(source, source, cache, cache, "*i64", "*fp32", "*fp32"),
        # torch aligns slots and scales to their items at least; counts may be anything.
        divisors=(rows, rows, places, places, 8, 4, 4, 1, 1, *map(_divisor, strides)),
        constants=(*constants.items(), ("FP8", int(not copy)), ("PER_HEAD", int(per_head))),
    )


def _divisor(number: int) -> int:
    """The largest power of two up to 16 that divides the number."""
    return math.gcd(number, VECTOR_BYTES)


def many_from(row_items: int, sm_count: int) -> int:
    """The number of tokens from which large tiles fill the GPU four times."""
    return -(-MANY_ITEMS * sm_count * 4 // row_items)


def tile(name: str, row_items: int, many: bool) -> tuple[int, int]:
    """Tokens and columns of one program of the kernel.

    A tile is at most one row wide. With few tokens it is small, so that every multiprocessor gets one; with
    many it is large, so that each thread has several accesses in flight.
    """
    items = MANY_ITEMS if many else FEW_ITEMS
    columns = min(WIDEST[name][0 if many else 1], triton.next_power_of_2(row_items))
    return items // columns, columns


def constants(kernel: Kernel, tokens: int, columns: int) -> dict[str, int]:
    """All compile-time constants, in the function's order."""
    return dict(kernel.constants) | {"TOKENS": tokens, "COLUMNS": columns}


def source(kernel: Kernel, tokens: int, columns: int) -> ASTSource:
    """What `triton.compile` takes; every integer is an i64, so that none depends on a value's width."""
    function: Any = getattr(kernels, kernel.name)
    fixed = constants(kernel, tokens, columns)
    integers = len(kernel.divisors) - len(kernel.pointers)
    types = [*kernel.pointers, *["i64"] * integers, *["constexpr"] * len(fixed)]
    signature = dict(zip(function.arg_names, types, strict=True))
    attributes = {(i,): [["tt.divisibility", d]] for i, d in enumerate(kernel.divisors) if d > 1}
    return ASTSource(function, signature, fixed, attributes)
