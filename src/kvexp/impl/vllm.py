"""vllm: vLLM's own CUDA ops, where vLLM is installed; a peer, not a dependency."""

from typing import Any

from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl import do_nothing, import_peer
from kvexp.op import Call

WARP = 32


class Vllm:
    """The ops of `vllm._custom_ops`, verified like any implementation."""

    name = "vllm"
    untimed = ""

    def __init__(self, device: str) -> None:
        self.ops: Any = import_peer(self.name, "vllm", ["vllm._custom_ops"])

    def reshape_and_cache(self, *arguments: Any) -> Call:
        """Bind `op.reshape_and_cache` to these arguments."""
        return _bind(self.ops.reshape_and_cache, arguments)

    def reshape_and_cache_flash(self, *arguments: Any) -> Call:
        """Bind `op.reshape_and_cache_flash` to these arguments."""
        key, _, key_cache, *_ = arguments
        _, num_heads, head_size = key.shape
        heads_are_adjacent = key_cache.stride(2) == head_size
        if num_heads * head_size < WARP and not heads_are_adjacent:
            raise Unsupported(
                f"impl=vllm never returns for rows of {num_heads * head_size} elements, fewer than {WARP}, "
                "whose heads lie apart in the cache"
            )
        return _bind(self.ops.reshape_and_cache_flash, arguments)

    def concat_and_cache_mla(self, *arguments: Any) -> Call:
        """Bind `op.concat_and_cache_mla` to these arguments."""
        return _bind(self.ops.concat_and_cache_mla, arguments, slots_at=3)

    def indexer_k_quant_and_cache(self, *arguments: Any) -> Call:
        """Bind `op.indexer_k_quant_and_cache` to these arguments."""
        return _bind(self.ops.indexer_k_quant_and_cache, arguments, slots_at=2)


def _bind(function: Any, arguments: tuple[Any, ...], slots_at: int = 4) -> Call:
    key, slot_mapping = arguments[0], arguments[slots_at]
    if key.itemsize == 1:
        raise Unsupported("impl=vllm stores no rows that are 8-bit floats already")
    if not slot_mapping.shape[0]:
        # vLLM's launch of no tokens is an error.
        return do_nothing

    def call(_alive: tuple[Tensor | str | int | None, ...] = arguments) -> None:
        function(*arguments)

    return call
