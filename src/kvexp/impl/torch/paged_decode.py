"""Gather each sequence's past, then torch's attention."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvexp.impl.torch import Torch
from kvexp.op import Call
from kvexp.op.quantize import FORMATS


def bind(
    impl: Torch, output: Tensor, query: Tensor, key_cache: Tensor, value_cache: Tensor, *rest: Any
) -> Call:
    """Bind the op to these tensors."""
    block_table, seq_lens, kv_cache_dtype, k_scale, v_scale = rest
    decode = impl.compiled(_decode)
    planes = [(key_cache, k_scale), (value_cache, v_scale)]

    def call() -> None:
        decode(output, query, planes, block_table, seq_lens, kv_cache_dtype)

    return call


def _decode(
    output: Tensor,
    query: Tensor,
    planes: list[tuple[Tensor, Tensor]],
    block_table: Tensor,
    seq_lens: Tensor,
    kv_cache_dtype: str,
) -> None:
    most = block_table.shape[1] * planes[0][0].shape[1]
    is_past = torch.arange(most, device=query.device) < seq_lens.unsqueeze(1)
    heads: list[Tensor] = []
    for cache, scale in planes:
        rows = cache[block_table.long()].flatten(1, 2)
        if kv_cache_dtype != "auto":
            numbers = rows.view(FORMATS[kv_cache_dtype].dtype).float() * scale.view(-1, 1)
            rows = numbers.to(query.dtype)
        # What lies behind a sequence may be NaN, which no mask of the products takes away.
        heads.append(rows.where(is_past[:, :, None, None], 0).transpose(1, 2))
    mask = is_past[:, None, None]
    key, value = heads
    found = scaled_dot_product_attention(query.unsqueeze(2), key, value, attn_mask=mask, enable_gqa=True)
    output.copy_(found.squeeze(2))
