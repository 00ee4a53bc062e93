"""vllm_triton: vLLM's Triton kernels, where vLLM is installed; a peer, never a dependency."""

import importlib
from collections.abc import Callable
from typing import Any

from kvexp.errors import Unsupported
from kvexp.op import Call

MODULES = (
    "vllm.v1.attention.ops.triton_reshape_and_cache_flash",
    "vllm.attention.ops.triton_reshape_and_cache_flash",
)
"""Where the launchers live, the newer place first."""


class VllmTriton:
    """The launchers of vLLM's Triton kernels; the flash one writes the head-major cache, too."""

    name = "vllm_triton"
    untimed = ""

    def __init__(self, device: str) -> None:
        self.module = _module()

    def reshape_and_cache(self, *arguments: Any) -> Call:
        """`op.reshape_and_cache` bound to these arguments."""
        return self._bound("triton_reshape_and_cache_flash", arguments, arguments[4])

    def reshape_and_cache_flash(self, *arguments: Any) -> Call:
        """`op.reshape_and_cache_flash` bound to these arguments."""
        return self._bound("triton_reshape_and_cache_flash", arguments, arguments[4])

    def reshape_and_cache_flash_diffkv(self, *arguments: Any) -> Call:
        """`op.reshape_and_cache_flash_diffkv` bound to these arguments."""
        return self._bound("triton_reshape_and_cache_flash_diffkv", arguments, arguments[3])

    def _bound(self, name: str, arguments: tuple[Any, ...], slot_mapping: Any) -> Call:
        function: Callable[..., None] | None = getattr(self.module, name, None)
        if function is None:
            raise Unsupported(f"impl=vllm_triton has no {name} in the vLLM that is installed")
        if not slot_mapping.shape[0]:
            return _nothing
        launch = function

        def call() -> None:
            launch(*arguments)

        return call


def _module() -> Any:
    """vLLM's module of launchers.

    Raises:
        Unsupported: vLLM is not there, or has none.
    """
    reasons = []
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
    raise Unsupported(
        f"impl=vllm_triton needs the package vllm with its Triton kernels, "
        f"which cannot be imported: {reasons[0]}"
    )


def _nothing() -> None:
    """The call for no tokens."""
