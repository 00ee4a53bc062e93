"""triton: the ops in Triton, for all layouts.

For a CPU, `TRITON_INTERPRET=1` must be in the environment before this package is imported: Triton reads it
when `@triton.jit` decorates. The measuring process of a CPU device sets it.
"""

import functools
import os
from typing import Any

import torch
import triton
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl.triton import kernels, source
from kvexp.impl.triton.launch import Launcher
from kvexp.op import Call

PACKED = ("reshape_and_cache_flash_diffkv",)
"""The ops that write K and V side by side to one cache."""

VIEWS = {
    "*i8": torch.int8,
    "*i16": torch.int16,
    "*i32": torch.int32,
    "*fp16": torch.float16,
    "*bf16": torch.bfloat16,
    "*fp32": torch.float32,
    "*fp8e4nv": torch.float8_e4m3fn,
    "*fp8e5": torch.float8_e5m2,
}


class Triton:
    """The ops in Triton; on a CPU they are interpreted, verified and not timed.

    Args:
        device: `cuda:N`, or `cpu` with the interpreter.
        num_warps: See `source.Options`.
        num_stages: The same.
        tile_tokens: The same.
        tile_columns: The same.
        slot_first: The same.
    """

    name = "triton"

    def __init__(
        self,
        device: str,
        num_warps: int | None = None,
        num_stages: int | None = None,
        tile_tokens: int | None = None,
        tile_columns: int | None = None,
        slot_first: bool | None = None,
    ) -> None:
        self.options = source.Options(num_warps, num_stages, tile_tokens, tile_columns, slot_first)
        self.device = torch.device(device)
        self.interpreted = self.device.type != "cuda"
        if self.interpreted and os.environ.get("TRITON_INTERPRET") != "1":
            raise Unsupported("impl=triton on a CPU needs TRITON_INTERPRET=1 in the environment")
        self.untimed = "interpreted: Triton's interpreter is no measure of the kernel" * self.interpreted
        self.gpu, self.capability = source.Gpu(1, 0), (0, 0)
        if not self.interpreted:
            properties = torch.cuda.get_device_properties(self.device)
            self.gpu = source.Gpu(properties.multi_processor_count, properties.L2_cache_size)
            self.capability = (properties.major, properties.minor)

    def reshape_and_cache(
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
        """Bind `op.reshape_and_cache` to these tensors; launch nothing for no tokens."""
        tensors = (key, value, key_cache, value_cache, slot_mapping)
        return self._bind("reshape_and_cache", *tensors, kv_cache_dtype, k_scale, v_scale)

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
        """Bind `op.reshape_and_cache_flash` to these tensors; launch nothing for no tokens."""
        tensors = (key, value, key_cache, value_cache, slot_mapping)
        return self._bind("reshape_and_cache_flash", *tensors, kv_cache_dtype, k_scale, v_scale)

    def reshape_and_cache_flash_diffkv(
        self,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> Call:
        """Bind `op.reshape_and_cache_flash_diffkv` to these tensors; launch nothing for no tokens."""
        tensors = (key, value, kv_cache, slot_mapping)
        return self._bind("reshape_and_cache_flash_diffkv", *tensors, kv_cache_dtype, k_scale, v_scale)

    def launcher(self, op: str, *arguments: Any) -> Launcher:
        """Return a launcher of the op for every call whose tensors agree with these.

        They have the same dtypes, sizes and strides; the bitwise or of the addresses of key and value ends in
        the same four bits, and that of the caches too. Nothing is compiled yet.

        Args:
            op: The op's name.
            *arguments: The op's.

        Returns:
            Its `prepare(num_tokens)` gives a function of the addresses of the op's tensors, in its order, 0
            for None, which launches on torch's current stream. The tensors' device must be the current one.

        Raises:
            Unsupported: The op's method would refuse these arguments.
        """
        if self.interpreted:
            raise Unsupported("impl=triton on a CPU has no launcher: Triton's interpreter takes no addresses")
        plan, _ = self._make_plan(op, *arguments)
        device = self.device.index or 0
        if op in PACKED:
            key, _, kv_cache, *_ = arguments
            value_at = key.shape[2] * kv_cache.element_size()
            return Launcher(plan, device, self.gpu, self.options, value_at)
        return Launcher(plan, device, self.gpu, self.options)

    def _bind(self, op: str, *arguments: Any) -> Call:
        if self.interpreted:
            return self._bind_interpreted(op, *arguments)
        launcher = self.launcher(op, *arguments)
        *before, _kv_cache_dtype, k_scale, v_scale = arguments
        tensors: tuple[Tensor | None, ...] = (*before, k_scale, v_scale)
        num_tokens = before[-1].shape[0]
        if not num_tokens:
            return _do_nothing
        addresses = tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        # Not in the first call, which a CUDA graph may be capturing.
        launch = launcher.prepare(num_tokens)

        def call(_alive: tuple[Tensor | None, ...] = tensors) -> None:
            launch(*addresses)

        return call

    def _bind_interpreted(self, op: str, *arguments: Any) -> Call:
        plan, tensors = self._make_plan(op, *arguments)
        *four, slot_mapping, k_scale, v_scale = tensors
        num_tokens = slot_mapping.shape[0]
        if not num_tokens:
            return _do_nothing
        kernel = plan.kernel
        views = (tensor.view(VIEWS[word]) for tensor, word in zip(four, kernel.pointers, strict=False))
        tokens, columns = source.choose_tile(kernel, plan.row_items, False, self.options)
        grid = (triton.cdiv(num_tokens, tokens) * triton.cdiv(plan.row_items, columns),)
        function: Any = getattr(kernels, kernel.name)
        values = (*views, slot_mapping, k_scale, v_scale, num_tokens, *plan.sizes)
        constants = source.make_constants(kernel, tokens, columns, bool(self.options.slot_first))
        return functools.partial(function[grid], *values, **constants)

    def _make_plan(self, op: str, *arguments: Any) -> tuple[source.Plan, tuple[Any, ...]]:
        """Return the plan of a call, and the tensors of its kernel in order."""
        *tensors, kv_cache_dtype, k_scale, v_scale = arguments
        if op in PACKED:
            key, value, kv_cache, slot_mapping = tensors
            head_size = key.shape[2]
            tensors = [key, value, kv_cache[..., :head_size], kv_cache[..., head_size:], slot_mapping]
        if not source.is_copy(tensors[0], kv_cache_dtype):
            self._check_fp8()
        make: Any = source.plan_head_major if op == "reshape_and_cache" else source.plan_flash
        *four, _slot_mapping = tensors
        return make(*four, kv_cache_dtype, k_scale), (*tensors, k_scale, v_scale)

    def _check_fp8(self) -> None:
        if self.interpreted:
            raise Unsupported(
                "impl=triton converting to fp8 needs a GPU: Triton's interpreter converts wrongly"
            )
        if self.capability < (9, 0):
            raise Unsupported(
                "impl=triton converting to fp8 needs compute capability 9.0, where its conversion is "
                f"exact; this GPU has {self.capability[0]}.{self.capability[1]}"
            )


def _do_nothing() -> None:
    """Do nothing, for no tokens."""
