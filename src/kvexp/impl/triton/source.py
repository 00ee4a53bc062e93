"""Derive a kernel's source from the tensors of a call: pure functions of dtypes, shapes and strides.

Triton's own dispatch inspects each call's arguments to decide what to compile. Here the decision is made
once, from what all calls of a launcher have in common, so that one compiled kernel serves all of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource

from kvexp.errors import ConfigError, Unsupported
from kvexp.gpu.launch import Launch

VECTOR_BYTES = 16
"""The widest access of one thread, and so the largest divisor of interest."""

SOURCES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
FP8 = {"fp8_e4m3": "*fp8e4nv", "fp8_e5m2": "*fp8e5"}

LARGE_ITEMS = 4096
MOST_TILE_ITEMS = 1 << 16


@dataclass(frozen=True)
class Options:
    """The kernels' options; None leaves the choice to the op's plan and to `NUM_WARPS`.

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

    @property
    def compiler_options(self) -> dict[str, int]:
        """The options of Triton's compiler that the user has set, by name."""
        chosen = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return {name: value for name, value in chosen.items() if value is not None}

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


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that tiles depend on: its multiprocessors and the bytes of its L2."""

    sm_count: int
    l2_bytes: int

    def is_filled(self, items: int) -> bool:
        """Return whether large tiles of so many items fill the GPU four times."""
        return items >= LARGE_ITEMS * self.sm_count * 4


@dataclass(frozen=True)
class Kernel:
    """What a compiled kernel depends on, except its tile.

    Attributes:
        function: What `@triton.jit` made.
        pointers: Triton's types of the pointers.
        divisors: For each pointer, then for `num_tokens` and the sizes: a power of two up to 16 that divides
            it in every call.
        constants: The compile-time constants, in the function's order.
    """

    function: Any
    pointers: tuple[str, ...]
    divisors: tuple[int, ...]
    constants: tuple[tuple[str, int], ...]

    @property
    def converts(self) -> bool:
        """Whether it converts to fp8; where it only copies it moves integers."""
        return any(word in FP8.values() for word in self.pointers)


class Tile(NamedTuple):
    """What the programs of a call do.

    Attributes:
        tokens: Tokens of one program.
        programs: Programs that share its tokens.
        constants: The kernel's last compile-time constants, in the function's order.
    """

    tokens: int
    programs: int
    constants: tuple[tuple[str, int], ...]


Choose = Callable[["Plan", int, Gpu, Options], Tile]
"""Chooses the tile of a plan for a number of tokens."""


@dataclass(frozen=True)
class Plan:
    """What all calls of one launcher have in common.

    Attributes:
        kernel: The kernel.
        sizes: The integers that follow `num_tokens`.
        row_items: Items of a token's row, of the longer of K and V.
        choose_tile: Returns the tile. Raises Unsupported where the options do not suit the kernel.
        adapt: Turns a launch by the addresses of the kernel's tensors into one by those of the op's.
    """

    kernel: Kernel
    sizes: tuple[int, ...]
    row_items: int
    choose_tile: Choose
    adapt: Callable[[Launch], Launch] = field(default=lambda launch: launch, compare=False)


Fit = tuple[Plan, tuple[Tensor | None, ...], int]
"""A call's plan, the tensors of the kernel's pointers with None where none is read, and `num_tokens`."""


class Write(NamedTuple):
    """The arguments of a kernel that writes keys and values to their caches."""

    key: Tensor
    value: Tensor
    key_cache: Tensor
    value_cache: Tensor
    slot_mapping: Tensor
    kv_cache_dtype: str
    k_scale: Tensor | None
    v_scale: Tensor | None

    def fit(
        self, function: Any, sizes: tuple[int, ...], constants: dict[str, int], row_items: int, choose: Choose
    ) -> Fit:
        """Fit a kernel to the call; see `Plan` for the arguments.

        The function takes tensors, `num_tokens`, sizes, constants, FP8, PER_HEAD and the tile's constants.
        The sizes are the number of slots, then strides.
        """
        key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale = self
        copy = kv_cache_dtype == "auto" or key.element_size() == 1
        # A copy moves integers, so that one kernel serves all types of a width and keeps NaNs.
        source = f"*i{8 * key.element_size()}" if copy else SOURCES[key.dtype]
        cache = source if copy else FP8[kv_cache_dtype]
        # Which of the two is aligned may differ between calls; the common alignment does not.
        rows = find_divisor(key.data_ptr() | value.data_ptr())
        places = find_divisor(key_cache.data_ptr() | value_cache.data_ptr())
        _num_slots, *strides = sizes
        per_head = not copy and k_scale is not None and k_scale.numel() > 1
        kernel = Kernel(
            function=function,
            pointers=(source, source, cache, cache, "*i64", "*fp32", "*fp32"),
            # torch aligns slots and scales to their items at least; counts may be anything.
            divisors=(rows, rows, places, places, 8, 4, 4, 1, 1, *map(find_divisor, strides)),
            constants=(*constants.items(), ("FP8", int(not copy)), ("PER_HEAD", int(per_head))),
        )
        tensors = (key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale)
        return Plan(kernel, sizes, row_items, choose), tensors, slot_mapping.shape[0]


def find_divisor(number: int) -> int:
    """Return the largest power of two up to 16 that divides the number."""
    return math.gcd(number, VECTOR_BYTES)


def make_tile(
    row_items: int, items: int, widest: int, options: Options, run: int = 1, **constants: int
) -> Tile:
    """Return a tile of `items`, at most one row or `widest` columns wide, unless the options say otherwise.

    Args:
        row_items: Items of a token's row.
        items: Items of the tile.
        widest: The most columns.
        options: The user's options.
        run: Items of a row that must not be split.
        **constants: The kernel's constants before TOKENS and COLUMNS.

    Raises:
        Unsupported: The options' columns would split a run, or the tile is too large.
    """
    columns = options.tile_columns or min(widest, triton.next_power_of_2(row_items))
    if columns % run:
        raise Unsupported(f"impl.tile_columns must hold whole runs of {run} items, and {columns} do not")
    tokens = options.tile_tokens or max(1, items // columns)
    if tokens * columns > MOST_TILE_ITEMS:
        raise Unsupported(
            f"a tile of {tokens} x {columns} items is more than {MOST_TILE_ITEMS}: less impl.tile_tokens"
        )
    return Tile(
        tokens, -(-row_items // columns), (*constants.items(), ("TOKENS", tokens), ("COLUMNS", columns))
    )


def make_source(kernel: Kernel, tile: Tile) -> ASTSource:
    """Return the input of `triton.compile`; every integer is an i64, whatever its value."""
    fixed = dict(kernel.constants + tile.constants)
    integers = len(kernel.divisors) - len(kernel.pointers)
    types = [*kernel.pointers, *["i64"] * integers, *["constexpr"] * len(fixed)]
    signature = dict(zip(kernel.function.arg_names, types, strict=True))
    attributes = {(i,): [["tt.divisibility", d]] for i, d in enumerate(kernel.divisors) if d > 1}
    return ASTSource(kernel.function, signature, fixed, attributes)
