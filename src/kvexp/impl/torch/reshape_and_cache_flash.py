"""Write `[num_blocks, block_size, num_heads, head_size]` by indexed assignment."""

from typing import Any

import torch
from torch import Tensor

from kvexp.impl.torch import Torch
from kvexp.op import Call


def bind(impl: Torch, key: Tensor, value: Tensor, key_cache: Tensor, *others: Any) -> Call:
    """Bind the op to these tensors."""
    num_blocks, block_size, _, _ = key_cache.shape
    return impl.bind_write(_store, num_blocks, block_size, key, value, key_cache, *others)


def _store(cache: Tensor, data: Tensor, block: Tensor, offset: Tensor, any_valid: Tensor) -> None:
    cache[block, offset] = torch.where(any_valid, data, cache[0, 0])
