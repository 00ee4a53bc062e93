"""Write one cache of K and V as `reshape_and_cache_flash` writes its two halves."""

from typing import Any

from torch import Tensor

from kvexp.impl.torch import Torch
from kvexp.op import Call


def bind(impl: Torch, key: Tensor, value: Tensor, kv_cache: Tensor, *others: Any) -> Call:
    """Bind the op to these tensors."""
    head_size = key.shape[-1]
    caches = kv_cache[..., :head_size], kv_cache[..., head_size:]
    call: Call = impl.reshape_and_cache_flash(key, value, *caches, *others)
    return call
