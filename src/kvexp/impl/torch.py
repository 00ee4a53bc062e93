"""torch: the ops as indexed assignment; what every machine can run, and what a port is compared with."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kvexp.op import Call
from kvexp.quantize import quantize

Planes = list[tuple[Tensor, Tensor, Tensor | None]]
"""Rows, the cache that they go to, and what fp8 divides by."""


class Torch:
    """The ops written with torch alone. Nothing synchronises, so CUDA graphs can capture it.

    Args:
        device: `cuda:N` or `cpu`.
        compile: The call is compiled by torch.compile before it is verified and timed.
    """

    name = "torch"
    untimed = ""

    def __init__(self, device: str, compile: bool = False) -> None:
        self.device = device
        self.compile = compile

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
        """`op.reshape_and_cache_flash` bound to these tensors."""
        num_blocks, block_size = key_cache.shape[:2]
        planes = [(key, _items(key_cache), k_scale), (value, _items(value_cache), v_scale)]

        def write(planes: Planes) -> None:
            token, slot, some = _destinations(slot_mapping, num_blocks * block_size)
            block, offset = slot // block_size, slot % block_size
            for rows, cache, scale in planes:
                data = _data(rows, token, cache, kv_cache_dtype, scale)
                cache[block, offset] = torch.where(some, data, cache[0, 0])

        return self._call(write, planes, slot_mapping)

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
        """`op.reshape_and_cache_flash_diffkv` bound to these tensors."""
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
        """`op.reshape_and_cache` bound to these tensors."""
        num_blocks, _, _, block_size = value_cache.shape
        planes = [(key, _items(key_cache), k_scale), (value, _items(value_cache), v_scale)]

        def write(planes: Planes) -> None:
            token, slot, some = _destinations(slot_mapping, num_blocks * block_size)
            block, offset = slot // block_size, slot % block_size
            for rows, cache, scale in planes:
                data = _data(rows, token, cache, kv_cache_dtype, scale)
                there = cache[0, :, :, 0]
                shaped = data.view(-1, *there.shape)
                cache[block, :, :, offset] = torch.where(some, shaped, there)

        return self._call(write, planes, slot_mapping)

    def _call(self, write: Callable[[Planes], None], planes: Planes, slot_mapping: Tensor) -> Call:
        """The write of all planes, compiled or not; nothing happens for no tokens."""
        if not slot_mapping.shape[0]:
            return _nothing
        if not self.compile:
            return functools.partial(write, planes)
        # Each plane by itself: torch.compile does not take two caches inside one allocation (torch 2.13).
        compiled = torch.compile(write, fullgraph=True, dynamic=False)
        key_plane, value_plane = planes

        def call() -> None:
            compiled([key_plane])
            compiled([value_plane])

        return call


def _nothing() -> None:
    """The call for no tokens."""


def _items(cache: Tensor) -> Tensor:
    """The cache as what torch can index: its 8-bit floats as bytes."""
    return cache.view(torch.uint8) if cache.itemsize == 1 else cache


def _data(rows: Tensor, token: Tensor, cache: Tensor, kv_cache_dtype: str, scale: Tensor | None) -> Tensor:
    """The cache items of the tokens' rows, `[num_tokens, num_heads, head_size]`."""
    chosen = (rows.view(torch.uint8) if rows.itemsize == 1 else rows)[token]
    return quantize(chosen, kv_cache_dtype, scale).view(cache.dtype)


def _destinations(slot_mapping: Tensor, num_slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each token the token whose row is written, and the slot where; and whether there is any such.

    A boolean mask over tokens without a slot would synchronise. Instead such a token repeats the first token
    that has one; when there is none, every token is to write back what is in slot 0.

    Args:
        slot_mapping: int64 `[num_tokens]`, `num_tokens > 0`.
        num_slots: A slot outside `[0, num_slots)` is none.

    Returns:
        Tokens int64 `[num_tokens]`, slots int64 `[num_tokens]`, and a bool without dims.
    """
    valid = (slot_mapping >= 0) & (slot_mapping < num_slots)
    some = valid.any()
    first = valid.to(torch.uint8).argmax()
    token = torch.where(valid, torch.arange(len(valid), device=valid.device), first)
    return token, slot_mapping[token].where(some, 0), some
