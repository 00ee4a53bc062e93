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
            if not slot_mapping.shape[0]:
                return
            token, slot, some = _destinations(slot_mapping, key_cache.shape[0] * key_cache.shape[1])
            block, offset = slot // key_cache.shape[1], slot % key_cache.shape[1]
            for rows, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
                data = rows[token]
                if kv_cache_dtype != "auto":
                    data = quantize(data, kv_cache_dtype, scale)
                cache[block, offset] = torch.where(some, data, cache[0, 0])

        return call


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
