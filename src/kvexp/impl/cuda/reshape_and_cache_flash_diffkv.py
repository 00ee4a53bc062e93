"""reshape_and_cache_flash_diffkv: the kernel of reshape_and_cache_flash, for one cache of K and V."""

from typing import Any

from torch import Tensor

from kvexp.gpu.launch import Launch
from kvexp.impl.cuda import reshape_and_cache_flash
from kvexp.impl.cuda.launcher import Fitted


class Packed(reshape_and_cache_flash.Flash):
    """The specialisation for a cache that holds K of a head and then its V."""

    def adapt(self, launch_kernel: Launch) -> Launch:
        """See `Spec.adapt`."""
        value_at = self.head_size * self.items.cache_bytes

        def launch(key: int, value: int, kv_cache: int, slots: int, k_scale: int, v_scale: int) -> None:
            launch_kernel(key, value, kv_cache, kv_cache + value_at, slots, k_scale, v_scale)

        return launch


def fit(key: Tensor, value: Tensor, kv_cache: Tensor, *others: Any, **options: Any) -> Fitted:
    """Return the specialisation for the halves of the cache, whose strides are equal."""
    halves = kv_cache[..., : key.shape[2]], kv_cache[..., key.shape[2] :]
    flash = reshape_and_cache_flash.fit(key, value, *halves, *others, **options)
    return flash._replace(spec=Packed(**vars(flash.spec)))
