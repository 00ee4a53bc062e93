"""Derive a kernel's source from the tensors of a call: pure functions of dtypes, shapes and strides.

Triton's own dispatch inspects each call's arguments to decide what to compile. Here the decision is made
once, from what all calls of a launcher have in common, so that one compiled kernel serves all of them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource

from kvexp.errors import ConfigError, Unsupported
from kvexp.impl.triton import kernels

VECTOR_BYTES = 16
"""The widest access of one thread, and so the largest divisor of interest."""

SOURCES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
FP8 = {"fp8_e4m3": "*fp8e4nv", "fp8_e5m2": "*fp8e5"}

THREADS = 128
"""Threads of a program with the default number of warps."""

FP8_ITEMS = 8
"""Items per thread that are converted to fp8, in the smaller tile."""

LARGE_ITEMS = 4096
TILES = ((LARGE_ITEMS, 128), (1024, 64))
"""Tiles of head_major for many and for few tokens: items of K, and of V, and the most columns.

It reads along columns and writes along tokens, so its tiles are wide in both; with few tokens they are small,
so that every multiprocessor gets one.
"""

MOST_TILE_ITEMS = 1 << 16

SM_THREADS = 2048
"""Most threads of a multiprocessor, on most GPUs."""

FILLED = 3
"""How many times accesses must fill the GPU before rows are read after their slots."""


@dataclass(frozen=True)
class Options:
    """The kernels' options; None leaves the choice to the functions below and to `NUM_WARPS`.

    Numbers are powers of two, except `num_stages`.

    Attributes:
        num_warps: Warps of a program, up to 32.
        num_stages: Stages of Triton's software pipelining, from 1 on. These kernels have no loop to
            pipeline, so their code is the same for any number.
        tile_tokens: Tokens of a program's tile.
        tile_columns: Items of a token's row in a tile; for `reshape_and_cache` whole runs of 16 bytes.
        slot_first: Whether flash reads a row only after its slot, which saves the rows of padding and makes
            every other row wait.
    """

    num_warps: int | None = None
    num_stages: int | None = None
    tile_tokens: int | None = None
    tile_columns: int | None = None
    slot_first: bool | None = None

    def __post_init__(self) -> None:
        """Reject values that no kernel can be compiled for.

        Raises:
            ConfigError: A value is not a power of two, too large, or of the wrong type.
        """
        if self.slot_first is not None and type(self.slot_first) is not bool:
            raise ConfigError(f"impl.slot_first must be true, false or null, not {self.slot_first!r}")
        if self.num_stages is not None and (type(self.num_stages) is not int or self.num_stages < 1):
            raise ConfigError(f"impl.num_stages must be a whole number from 1 on, not {self.num_stages!r}")
        for name, most in (("num_warps", 32), ("tile_tokens", 4096), ("tile_columns", 4096)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 < value <= most or value & (value - 1)):
                raise ConfigError(f"impl.{name} must be a power of two up to {most}, not {value!r}")
        if (self.tile_tokens or 1) * (self.tile_columns or 1) > MOST_TILE_ITEMS:
            raise ConfigError(f"impl.tile_tokens times impl.tile_columns must be at most {MOST_TILE_ITEMS}")


UNSET = Options()


@dataclass(frozen=True)
class Kernel:
    """What a compiled kernel depends on, except its tile.

    Attributes:
        name: Name of the function in `kernels`.
        pointers: Triton's types of the pointers.
        divisors: For each pointer, then for `num_tokens` and the sizes: a power of two up to 16 that divides
            it in every call.
        constants: The compile-time constants, in the function's order.
    """

    name: str
    pointers: tuple[str, ...]
    divisors: tuple[int, ...]
    constants: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """What all calls of one launcher have in common.

    Attributes:
        kernel: The kernel.
        sizes: The integers that follow `num_tokens`.
        row_items: Items of a token's row, of the longer of K and V.
    """

    kernel: Kernel
    sizes: tuple[int, ...]
    row_items: int


def is_copy(key: Tensor, kv_cache_dtype: str) -> bool:
    """Return whether bytes are only copied: without a cache format, or from fp8 sources."""
    return kv_cache_dtype == "auto" or key.element_size() == 1


def plan_flash(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
) -> Plan:
    """Return the plan for caches of the shape `[num_blocks, block_size, num_heads, head_size]`."""
    _, num_heads, head_size = key.shape
    head_size_v = value.shape[2]
    num_blocks, block_size = key_cache.shape[:2]
    # The stride of a dim of size 1 is arbitrary, and is only multiplied by 0.
    strides = [s if n > 1 else 0 for n, s in zip(key_cache.shape[:3], key_cache.stride(), strict=False)]
    sizes = (num_blocks * block_size, key.stride(0), value.stride(0), *strides)
    constants = {
        "NUM_HEADS": num_heads,
        "HEAD_SIZE": head_size,
        "HEAD_SIZE_V": head_size_v,
        "BLOCK_SIZE": block_size,
    }
    kernel = _make_kernel(
        "flash", (key, value, key_cache, value_cache), kv_cache_dtype, k_scale, sizes, constants
    )
    return Plan(kernel, sizes, num_heads * max(head_size, head_size_v))


def plan_head_major(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
) -> Plan:
    """Return the plan for head-major caches, K's in groups of `x` items of a token."""
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
    kernel = _make_kernel("head_major", tensors, kv_cache_dtype, k_scale, sizes, constants)
    return Plan(kernel, sizes, num_heads * head_size)


def _make_kernel(
    name: str,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    sizes: tuple[int, ...],
    constants: dict[str, int],
) -> Kernel:
    key, value, key_cache, value_cache = tensors
    copy = is_copy(key, kv_cache_dtype)
    # A copy moves integers, so that one kernel serves all types of a width and keeps NaNs.
    source = f"*i{8 * key.element_size()}" if copy else SOURCES[key.dtype]
    cache = source if copy else FP8[kv_cache_dtype]
    # Which of the two is aligned may differ between calls; the common alignment does not.
    rows = _find_divisor(key.data_ptr() | value.data_ptr())
    places = _find_divisor(key_cache.data_ptr() | value_cache.data_ptr())
    _num_slots, *strides = sizes
    per_head = not copy and k_scale is not None and k_scale.numel() > 1
    return Kernel(
        name=name,
        pointers=(source, source, cache, cache, "*i64", "*fp32", "*fp32"),
        # torch aligns slots and scales to their items at least; counts may be anything.
        divisors=(rows, rows, places, places, 8, 4, 4, 1, 1, *map(_find_divisor, strides)),
        constants=(*constants.items(), ("FP8", int(not copy)), ("PER_HEAD", int(per_head))),
    )


def _find_divisor(number: int) -> int:
    """Return the largest power of two up to 16 that divides the number."""
    return math.gcd(number, VECTOR_BYTES)


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that tiles depend on.

    Attributes:
        sm_count: Multiprocessors.
        l2_bytes: Bytes of its L2.
    """

    sm_count: int
    l2_bytes: int


def is_large(kernel: Kernel, row_items: int, num_tokens: int, gpu: Gpu) -> bool:
    """Return whether larger tiles are faster: they fill the GPU four times and, for flash, the L2 holds the
    written bytes. Beyond that the memory is the bottleneck, and more programs hide more of its latency.

    Conversion to fp8 is bound by arithmetic, of which larger tiles save some once they fill a quarter of the
    GPU.
    """
    if kernel.name == "flash" and dict(kernel.constants)["FP8"]:
        return 4 * num_tokens * row_items >= FP8_ITEMS * gpu.sm_count * SM_THREADS
    fills = num_tokens * row_items >= LARGE_ITEMS * gpu.sm_count * 4
    if kernel.name != "flash":
        return fills
    written = 2 * num_tokens * row_items * _get_source_bytes(kernel)
    return fills and written <= gpu.l2_bytes // 2


def waits_for_slots(kernel: Kernel, row_items: int, num_tokens: int, gpu: Gpu) -> bool:
    """Return whether flash reads rows only after their slots, so that rows of padding are not read.

    Every other row then waits for two memory accesses in sequence. Where copies in accesses of 16 bytes to
    K and to V fill the GPU many times, other programs hide the latency; conversion to fp8 would take 9 %
    longer.
    """
    if kernel.name != "flash" or dict(kernel.constants)["FP8"]:
        return False
    accesses = num_tokens * row_items * _get_source_bytes(kernel) // VECTOR_BYTES
    return accesses >= FILLED * gpu.sm_count * SM_THREADS


def choose_tile(kernel: Kernel, row_items: int, large: bool, options: Options = UNSET) -> tuple[int, int]:
    """Return the tokens and columns of one program of the kernel.

    A tile is at most one row wide. In flash's smaller tile each thread has one access of 16 bytes to K and
    one to V, or 8 items that become fp8; in the larger tile twice that.

    Raises:
        Unsupported: The options' columns would split a run of a head-major cache, or the tile is too large.
    """
    constant = dict(kernel.constants)
    if kernel.name == "flash":
        per_thread = FP8_ITEMS if constant["FP8"] else VECTOR_BYTES // _get_source_bytes(kernel)
        items = widest = THREADS * per_thread * (2 if large else 1)
    else:
        items, widest = TILES[0 if large else 1]
    columns = options.tile_columns or min(widest, triton.next_power_of_2(row_items))
    run = constant.get("X", 1)
    if columns % run:
        raise Unsupported(f"impl.tile_columns must hold whole runs of {run} items, and {columns} do not")
    tokens = options.tile_tokens or max(1, items // columns)
    if tokens * columns > MOST_TILE_ITEMS:
        raise Unsupported(
            f"a tile of {tokens} x {columns} items is more than {MOST_TILE_ITEMS}: less impl.tile_tokens"
        )
    return tokens, columns


def _get_source_bytes(kernel: Kernel) -> int:
    """Return the bytes of an item of key, from `*bf16` and the like."""
    return int("".join(filter(str.isdigit, kernel.pointers[0]))) // 8


def make_constants(kernel: Kernel, tokens: int, columns: int, slot_first: bool = False) -> dict[str, int]:
    """Return all compile-time constants, in the function's order."""
    waits = {"SLOT_FIRST": int(slot_first)} if kernel.name == "flash" else {}
    return dict(kernel.constants) | waits | {"TOKENS": tokens, "COLUMNS": columns}


def make_source(kernel: Kernel, tokens: int, columns: int, slot_first: bool = False) -> ASTSource:
    """Return the input of `triton.compile`; every integer is an i64, whatever its value."""
    function: Any = getattr(kernels, kernel.name)
    fixed = make_constants(kernel, tokens, columns, slot_first)
    integers = len(kernel.divisors) - len(kernel.pointers)
    types = [*kernel.pointers, *["i64"] * integers, *["constexpr"] * len(fixed)]
    signature = dict(zip(function.arg_names, types, strict=True))
    attributes = {(i,): [["tt.divisibility", d]] for i, d in enumerate(kernel.divisors) if d > 1}
    return ASTSource(function, signature, fixed, attributes)
