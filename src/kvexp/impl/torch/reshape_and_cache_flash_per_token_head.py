"""Write heads with scales of their own by indexed assignment."""

import torch
from torch import Tensor

from kvexp.impl import do_nothing
from kvexp.impl.torch import Torch, find_destinations
from kvexp.op import Call
from kvexp.op.quantize import quantize_heads


def bind(
    impl: Torch, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_cache_dtype: str
) -> Call:
    """Bind the op to these tensors."""
    if not slot_mapping.shape[0] or not kv_cache.shape[0] * kv_cache.shape[1]:
        return do_nothing
    write = impl.compiled(_write)

    def call() -> None:
        write(key, value, kv_cache, slot_mapping, kv_cache_dtype)

    return call


def _write(key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_cache_dtype: str) -> None:
    num_blocks, block_size = kv_cache.shape[:2]
    token, slot, any_valid = find_destinations(slot_mapping, num_blocks * block_size)
    cells = torch.cat([quantize_heads(rows[token], kv_cache_dtype) for rows in (key, value)], -1)
    kv_cache[slot // block_size, slot % block_size] = torch.where(any_valid, cells, kv_cache[0, 0])
