"""torch: the op as indexed assignment; what every machine can run, and what a port is compared with."""

import torch
from torch import Tensor

from kvexp.op import Call
from kvexp.quantize import quantize


class Torch:
    """The ops written with torch alone. Nothing synchronises, so CUDA graphs can capture it."""

    name = "torch"
    untimed = ""

    def __init__(self, device: str) -> None:
        self.device = device

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
        if kv_cache_dtype != "auto":
            key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)

        def call() -> None:
            _write(key, key_cache, slot_mapping, kv_cache_dtype, k_scale)
            _write(value, value_cache, slot_mapping, kv_cache_dtype, v_scale)

        return call


def _write(rows: Tensor, cache: Tensor, slot_mapping: Tensor, kv_cache_dtype: str, scale: Tensor) -> None:
    """The rows are in their slots; tokens whose slot is not in the cache write nothing.

    A boolean mask would synchronise. Instead a token without a slot repeats the first token that has one;
    when there is none, every token writes back what is in slot 0.

    Args:
        rows: `[>= num_tokens, num_heads, head_size]`.
        cache: `[num_blocks, block_size, num_heads, head_size]`, any strides.
        slot_mapping: int64 `[num_tokens]`.
        kv_cache_dtype: `auto` or the fp8 format.
        scale: float32 with one element.
    """
    num_tokens = slot_mapping.shape[0]
    if not num_tokens:
        return
    block_size = cache.shape[1]
    valid = (slot_mapping >= 0) & (slot_mapping < cache.shape[0] * block_size)
    first = valid.to(torch.uint8).argmax()
    token = torch.where(valid, torch.arange(num_tokens, device=valid.device), first)
    slot = slot_mapping[token].where(valid.any(), 0)
    data = rows[token]
    if kv_cache_dtype != "auto":
        data = quantize(data, kv_cache_dtype, scale)
    data = torch.where(valid.any(), data, cache[0, 0])
    cache[slot // block_size, slot % block_size] = data
