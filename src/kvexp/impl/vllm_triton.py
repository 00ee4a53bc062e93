"""vllm_triton: vLLM's Triton kernels, where vLLM is installed; a peer, not a dependency."""

from collections.abc import Callable
from typing import Any

from kvexp.errors import Unsupported
from kvexp.impl import do_nothing, import_peer
from kvexp.op import Call

MODULES = (
    "vllm.v1.attention.ops.triton_reshape_and_cache_flash",
    "vllm.attention.ops.triton_reshape_and_cache_flash",
)
"""Modules of the launchers, the newer one first."""


class VllmTriton:
    """The launchers of vLLM's Triton kernels; the flash launcher also writes head-major caches."""

    name = "vllm_triton"
    untimed = ""

    def __init__(self, device: str) -> None:
        self.module = import_peer(self.name, "vllm with its Triton kernels", MODULES)

    def reshape_and_cache(self, *arguments: Any) -> Call:
        """Bind `op.reshape_and_cache` to these arguments."""
        return self._bind("triton_reshape_and_cache_flash", arguments, arguments[4])

    def reshape_and_cache_flash(self, *arguments: Any) -> Call:
        """Bind `op.reshape_and_cache_flash` to these arguments."""
        return self._bind("triton_reshape_and_cache_flash", arguments, arguments[4])

    def reshape_and_cache_flash_diffkv(self, *arguments: Any) -> Call:
        """Bind `op.reshape_and_cache_flash_diffkv` to these arguments."""
        return self._bind("triton_reshape_and_cache_flash_diffkv", arguments, arguments[3])

    def _bind(self, name: str, arguments: tuple[Any, ...], slot_mapping: Any) -> Call:
        function: Callable[..., None] | None = getattr(self.module, name, None)
        if function is None:
            raise Unsupported(f"impl=vllm_triton has no {name} in the vLLM that is installed")
        if not slot_mapping.shape[0]:
            return do_nothing
        launch = function

        def call() -> None:
            launch(*arguments)

        return call
