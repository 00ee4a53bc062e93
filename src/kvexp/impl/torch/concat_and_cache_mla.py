"""Write rows without heads as ones of one head; rows with scales of their own by indexed assignment."""

import torch
from torch import Tensor

from kvexp.impl import do_nothing
from kvexp.impl.torch import Torch, find_destinations
from kvexp.op import DS_MLA, Call
from kvexp.op.quantize import quantize_tiles


def bind(
    impl: Torch,
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    scale: Tensor | None,
) -> Call:
    """Bind the op to these tensors."""
    if kv_cache_dtype == DS_MLA:
        return _bind_tiles(impl, kv_c, k_pe, kv_cache, slot_mapping)
    width = kv_c.shape[1]
    caches = (half.unsqueeze(2) for half in (kv_cache[..., :width], kv_cache[..., width:]))
    rows = kv_c.unsqueeze(1), k_pe.unsqueeze(1)
    call: Call = impl.reshape_and_cache_flash(*rows, *caches, slot_mapping, kv_cache_dtype, scale, scale)
    return call


def _bind_tiles(impl: Torch, kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> Call:
    if not slot_mapping.shape[0] or not kv_cache.shape[0] * kv_cache.shape[1]:
        return do_nothing
    write = impl.compiled(_write_tiles)

    def call() -> None:
        write(kv_c, k_pe, kv_cache, slot_mapping)

    return call


def _write_tiles(kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    num_blocks, block_size, width = kv_cache.shape
    token, slot, any_valid = find_destinations(slot_mapping, num_blocks * block_size)
    codes = quantize_tiles(kv_c[token].unsqueeze(1))[:, 0]
    row = torch.cat([codes, k_pe[token].contiguous().view(torch.uint8)], -1)
    row = torch.nn.functional.pad(row, (0, width - row.shape[1]))
    kv_cache[slot // block_size, slot % block_size] = torch.where(any_valid, row, kv_cache[0, 0])
