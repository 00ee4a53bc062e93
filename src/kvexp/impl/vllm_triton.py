"""vllm_triton: vLLM's Triton kernels, where vLLM is installed; a peer, not a dependency."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl import do_nothing, import_peer
from kvexp.op import Call

MODULES = (
    "vllm.v1.attention.ops.triton_reshape_and_cache_flash",
    "vllm.attention.ops.triton_reshape_and_cache_flash",
)
"""Modules of the launchers, the newer one first."""

SCALE_BYTES = 4
CODES = {"int8_per_token_head": torch.int8, "fp8_per_token_head": torch.float8_e4m3fn}
"""Types of the codes, by which the launcher knows what is meant."""


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

    def reshape_and_cache_flash_per_token_head(
        self, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_cache_dtype: str
    ) -> Call:
        """Bind `op.reshape_and_cache_flash_per_token_head` to these arguments.

        Raises:
            Unsupported: Scales would not be aligned.
        """
        head_size, head_size_v = key.shape[2], value.shape[2]
        distances = (kv_cache.data_ptr(), head_size, head_size_v, *kv_cache.stride()[:3])
        if any(distance % SCALE_BYTES for distance in distances):
            raise Unsupported(
                "impl=vllm_triton stores scales whole, so each must lie at a multiple of 4 bytes"
            )
        parts = kv_cache.split((head_size, SCALE_BYTES, head_size_v, SCALE_BYTES), -1)
        k_codes, k_scale, v_codes, v_scale = parts
        codes = [codes.view(CODES[kv_cache_dtype]) for codes in (k_codes, v_codes)]
        scales = [scale.view(torch.float32).squeeze(-1) for scale in (k_scale, v_scale)]
        name = "triton_reshape_and_cache_flash_per_token_head_quant"
        return self._bind(name, (key, value, *codes, *scales, slot_mapping), slot_mapping)

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
