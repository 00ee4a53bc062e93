"""sglang: SGLang's write of rows into its pools of slots, where SGLang is installed; a peer."""

import inspect
import weakref
from typing import Any

import torch
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl import do_nothing, import_peer
from kvexp.op import Call

MODULES = ("sglang.kernels.ops.kvcache.kvcache", "sglang.jit_kernel.kvcache")
"""Modules of `store_cache`, the newer one first."""


class SGLang:
    """`store_cache`, which copies a token's whole row of heads: into caches whose heads are adjacent.

    It writes into two pools of rows. A cache whose blocks hold more than K, or more than V, is such a pool
    with rows in between that no index names, so the slots become indices of that pool. They are made outside
    the timed call, since an engine with such pools has them already; so `refresh` must be called after the
    slots change. SGLang's graphs put padding into slot 0, which newer versions leave as it is. Here it is a
    slot like any other, and none is left out.
    """

    name = "sglang"
    untimed = ""

    def __init__(self, device: str) -> None:
        self._module = import_peer(self.name, "sglang with its store_cache", MODULES)
        reserves = "reserved_skip_index" in inspect.signature(self._module.store_cache).parameters
        self._options: dict[str, Any] = {"reserved_skip_index": -1} if reserves else {}
        self._calls: weakref.WeakSet[_Store] = weakref.WeakSet()

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
        """Bind `op.reshape_and_cache_flash` to these tensors."""
        if kv_cache_dtype != "auto":
            raise Unsupported(f"impl=sglang copies and has no kv_cache_dtype={kv_cache_dtype}")
        num_tokens, (num_blocks, block_size) = slot_mapping.shape[0], key_cache.shape[:2]
        rows = [tensor[:num_tokens].flatten(1) for tensor in (key, value)]
        for row in rows:
            row_bytes = row.shape[1] * row.itemsize
            if not self._module.can_use_store_cache(row_bytes):
                raise Unsupported(f"impl=sglang has no kernel for rows of {row_bytes} bytes")
        pools = [_view_pool(cache) for cache in (key_cache, value_cache)]
        if not num_tokens:
            return do_nothing
        if int(slot_mapping.min()) < 0:
            raise Unsupported("impl=sglang has no padding slots")
        if int(slot_mapping.max()) >= num_blocks * block_size:
            raise Unsupported("impl=sglang has no slots past the last")
        call = _Store(self._module.store_cache, self._options, (*rows, *pools), slot_mapping, key_cache)
        call.update()
        self._calls.add(call)
        return call

    def refresh(self) -> None:
        """Update the indices of every bound call from its slots."""
        for call in self._calls:
            call.update()


class _Store:
    """One bound call."""

    def __init__(
        self, store: Any, options: dict[str, Any], tensors: tuple[Tensor, ...], slots: Tensor, cache: Tensor
    ) -> None:
        self._store, self._slots, self._indices = store, slots, slots.clone()
        self._block_size, self._rows_a_block = cache.shape[1], cache.stride(0) // cache.stride(1)
        named = zip(("k", "v", "k_cache", "v_cache"), tensors, strict=True)
        self._arguments = options | dict(named) | {"indices": self._indices}

    def update(self) -> None:
        """Make the indices of the pool's rows from the slots."""
        blocks, places = self._slots // self._block_size, self._slots % self._block_size
        self._indices.copy_(blocks * self._rows_a_block + places)

    def __call__(self) -> None:
        """Store keys and values in the pools."""
        self._store(**self._arguments)


def _view_pool(cache: Tensor) -> Tensor:
    """View a cache as rows `[rows, num_heads * head_size]`, those between its blocks included.

    Raises:
        Unsupported: The heads of a slot are not adjacent, or blocks begin between two rows.
    """
    num_blocks, block_size, num_heads, head_size = cache.shape
    of_block, of_token, of_head, _ = cache.stride()
    if (num_heads > 1 and of_head != head_size) or of_block % of_token:
        raise Unsupported("impl=sglang writes caches whose heads are adjacent in each slot: layout=NHD")
    rows = (num_blocks - 1) * (of_block // of_token) + block_size
    return torch.as_strided(cache, (rows, num_heads * head_size), (of_token, 1))
