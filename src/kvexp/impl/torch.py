"""torch: the ops as indexed assignment, which runs on every machine and serves as a reference for ports."""

from collections.abc import Callable

import torch
from torch import Tensor

from kvexp.op import Call
from kvexp.op.quantize import quantize

Plane = tuple[Tensor, Tensor, Tensor | None]
"""Rows, their cache, and the scale that fp8 divides by."""

Store = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""`store(cache, data, block, offset, any_valid)` writes the data, or without a valid slot, the old items."""

MOST_COMPILATIONS = 1 << 16


class Torch:
    """The ops in plain torch. Nothing synchronises, so CUDA graphs can capture them.

    Args:
        device: `cuda:N` or `cpu`.
        compile: Compile the call with torch.compile.
    """

    name = "torch"
    untimed = ""

    def __init__(self, device: str, compile: bool = False) -> None:
        self.device = device
        self._write = _write
        if compile:
            # One function for all calls, which take the tensors as arguments and so share compilations. Each
            # size and type needs its own, more than torch allows a function by default.
            torch._dynamo.config.recompile_limit = MOST_COMPILATIONS
            torch._dynamo.config.accumulated_recompile_limit = MOST_COMPILATIONS
            self._write = torch.compile(_write, fullgraph=True, dynamic=False)
        # One plane at a time: torch.compile refuses some caches that share an allocation (torch 2.13).
        self._planes_at_once = 1 if compile else 2

    def reshape_and_cache_flash(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> Call:
        """Bind `op.reshape_and_cache_flash` to these tensors."""
        planes = [(key, key_cache, k_scale), (value, value_cache, v_scale)]
        return self._call(
            planes, slot_mapping, key_cache.shape[0], key_cache.shape[1], kv_cache_dtype, _flash
        )

    def reshape_and_cache_flash_diffkv(
        self,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> Call:
        """Bind `op.reshape_and_cache_flash_diffkv` to these tensors."""
        head_size = key.shape[-1]
        key_cache, value_cache = kv_cache[..., :head_size], kv_cache[..., head_size:]
        return self.reshape_and_cache_flash(
            key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale
        )

    def reshape_and_cache(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> Call:
        """Bind `op.reshape_and_cache` to these tensors."""
        num_blocks, _, _, block_size = value_cache.shape
        planes = [(key, key_cache, k_scale), (value, value_cache, v_scale)]
        return self._call(planes, slot_mapping, num_blocks, block_size, kv_cache_dtype, _head_major)

    def _call(
        self,
        planes: list[Plane],
        slot_mapping: Tensor,
        num_blocks: int,
        block_size: int,
        kv_cache_dtype: str,
        store: Store,
    ) -> Call:
        """Return the call that writes all planes; it does nothing for no tokens."""
        if not slot_mapping.shape[0] or not num_blocks * block_size:
            return _do_nothing
        items = [(rows, _as_indexable(cache), scale) for rows, cache, scale in planes]
        parts = [items[i : i + self._planes_at_once] for i in range(0, len(items), self._planes_at_once)]
        write = self._write

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
    token, slot, any_valid = _find_destinations(slot_mapping, num_slots)
    block, offset = slot // block_size, slot % block_size
    for rows, cache, scale in planes:
        store(cache, _convert(rows, token, cache, kv_cache_dtype, scale), block, offset, any_valid)


def _flash(cache: Tensor, data: Tensor, block: Tensor, offset: Tensor, any_valid: Tensor) -> None:
    cache[block, offset] = torch.where(any_valid, data, cache[0, 0])


def _head_major(cache: Tensor, data: Tensor, block: Tensor, offset: Tensor, any_valid: Tensor) -> None:
    old = cache[0, :, :, 0]
    cache[block, :, :, offset] = torch.where(any_valid, data.view(-1, *old.shape), old)


def _do_nothing() -> None:
    """Do nothing, for no tokens."""


def _as_indexable(cache: Tensor) -> Tensor:
    """Return the cache as a type that torch can index: 8-bit floats as bytes."""
    return cache.view(torch.uint8) if cache.itemsize == 1 else cache


def _convert(rows: Tensor, token: Tensor, cache: Tensor, kv_cache_dtype: str, scale: Tensor | None) -> Tensor:
    """Return the cache items of the tokens' rows, `[num_tokens, num_heads, head_size]`."""
    chosen = (rows.view(torch.uint8) if rows.itemsize == 1 else rows)[token]
    return quantize(chosen, kv_cache_dtype, scale).view(cache.dtype)


def _find_destinations(slot_mapping: Tensor, num_slots: int) -> tuple[Tensor, Tensor, Tensor]:
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
