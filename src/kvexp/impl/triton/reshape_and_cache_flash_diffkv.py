"""Write K and V side by side to one cache, by the kernel of `reshape_and_cache_flash`."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from kvexp.gpu.launch import Launch
from kvexp.impl.triton import reshape_and_cache_flash as flash
from kvexp.impl.triton.source import Fit


def fit(key: Tensor, value: Tensor, kv_cache: Tensor, *others: Any) -> Fit:
    """Fit the kernel, which takes the one cache as two."""
    head_size = key.shape[2]
    value_at = head_size * kv_cache.element_size()
    caches = kv_cache[..., :head_size], kv_cache[..., head_size:]
    plan, tensors, num_tokens = flash.fit(key, value, *caches, *others)

    def adapt(launch: Launch) -> Launch:
        def launch_packed(
            key: int, value: int, kv_cache: int, slots: int, k_scale: int, v_scale: int
        ) -> None:
            launch(key, value, kv_cache, kv_cache + value_at, slots, k_scale, v_scale)

        return launch_packed

    return replace(plan, adapt=adapt), tensors, num_tokens
