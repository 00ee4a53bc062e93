"""torch: the ops as indexed assignment, which runs on every machine and serves as a reference for ports.

An op's file has `bind(impl, *arguments)`, which takes the Torch and the op's arguments and returns the call.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvexp.impl import do_nothing, op_files
from kvexp.op import Call
from kvexp.op.quantize import quantize

Plane = tuple[Tensor, Tensor, Tensor | None]
"""Rows, their cache, and the scale that fp8 divides by."""

Store = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""`store(cache, data, block, offset, any_valid)` writes the data, or without a valid slot, the old items."""

MOST_COMPILATIONS = 1 << 16

_OpMethods: Any = object
"""A base for mypy, which then takes the methods that `op_files` adds, after `super()` too."""


@op_files(__name__, __path__)
class Torch(_OpMethods):  # type: ignore[misc]  # a base of any type
    """The ops in plain torch. Nothing synchronises, so CUDA graphs can capture them.

    Args:
        device: `cuda:N` or `cpu`.
        compile: Compile the call with torch.compile.

    Attributes:
        compiled: Takes a function and returns the one to call in its place.
    """

    name = "torch"
    untimed = ""

    def __init__(self, device: str, compile: bool = False) -> None:
        self.device = device
        self.compiled: Callable[[Any], Any] = lambda function: function
        if compile:
            # One function for all calls, which take the tensors as arguments and so share compilations. Each
            # size and type needs its own, more than torch allows a function by default.
            torch._dynamo.config.recompile_limit = MOST_COMPILATIONS
            torch._dynamo.config.accumulated_recompile_limit = MOST_COMPILATIONS
            self.compiled = functools.cache(functools.partial(torch.compile, fullgraph=True, dynamic=False))
        # One plane at a time: torch.compile refuses some caches that share an allocation (torch 2.13).
        self._planes_at_once = 1 if compile else 2

    def bind_file(self, file: Any, *arguments: Any) -> Any:
        """Bind the op of the file to its arguments."""
        return file.bind(self, *arguments)

    def bind_write(self, store: Store, num_blocks: int, block_size: int, *arguments: Any) -> Call:
        """Return the call that writes the tokens' rows to both caches; it does nothing for no tokens."""
        key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale = arguments
        if not slot_mapping.shape[0] or not num_blocks * block_size:
            return do_nothing
        planes = [(key, as_indexable(key_cache), k_scale), (value, as_indexable(value_cache), v_scale)]
        parts = [planes[i : i + self._planes_at_once] for i in range(0, 2, self._planes_at_once)]
        write = self.compiled(_write)

        def call() -> None:
            for part in parts:
                write(part, slot_mapping, num_blocks * block_size, block_size, kv_cache_dtype, store)

        return call


def _write(
    planes: list[Plane],
    slot_mapping: Tensor,
    num_slots: int,
    block_size: int,
    kv_cache_dtype: str,
    store: Store,
) -> None:
    token, slot, any_valid = find_destinations(slot_mapping, num_slots)
    block, offset = slot // block_size, slot % block_size
    for rows, cache, scale in planes:
        store(cache, _convert(rows, token, cache, kv_cache_dtype, scale), block, offset, any_valid)


def as_indexable(cache: Tensor) -> Tensor:
    """Return the cache as a type that torch can index: 8-bit floats as bytes."""
    return cache.view(torch.uint8) if cache.itemsize == 1 else cache


def _convert(rows: Tensor, token: Tensor, cache: Tensor, kv_cache_dtype: str, scale: Tensor | None) -> Tensor:
    """Return the cache items of the tokens' rows, `[num_tokens, num_heads, head_size]`."""
    chosen = (rows.view(torch.uint8) if rows.itemsize == 1 else rows)[token]
    return quantize(chosen, kv_cache_dtype, scale).view(cache.dtype)


def find_destinations(slot_mapping: Tensor, num_slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each token the token whose row is written and its slot, and whether any slot is valid.

    A boolean mask of the tokens with a slot would synchronise. Instead a token without one repeats the first
    token that has one; if no token has, every token writes back the items of slot 0.

    Args:
        slot_mapping: int64 `[num_tokens]`, `num_tokens > 0`.
        num_slots: Slots outside `[0, num_slots)` are not valid.

    Returns:
        Tokens int64 `[num_tokens]`, slots int64 `[num_tokens]`, and a bool without dims.
    """
    valid = (slot_mapping >= 0) & (slot_mapping < num_slots)
    any_valid = valid.any()
    first = valid.to(torch.uint8).argmax()
    token = torch.where(valid, torch.arange(len(valid), device=valid.device), first)
    return token, slot_mapping[token].where(any_valid, 0), any_valid
