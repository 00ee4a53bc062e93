"""triton: the ops in Triton, for all layouts.

For a CPU, `TRITON_INTERPRET=1` must be in the environment before this package is imported: Triton reads it
when `@triton.jit` decorates. The measuring process of a CPU device sets it.

An op's file has its kernel and `fit`, which takes the op's arguments and returns a `source.Fit`; or `bind`,
which takes the Triton and the op's arguments and returns the call, where the library has no function of it.
"""

import functools
import importlib
import os
from typing import Any

import torch
import triton
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl import do_nothing, op_files
from kvexp.impl.triton import source
from kvexp.impl.triton.launch import Launcher
from kvexp.op import Call, get_method

VIEWS = {
    "*i8": torch.int8,
    "*i16": torch.int16,
    "*i32": torch.int32,
    "*i64": torch.int64,
    "*fp16": torch.float16,
    "*bf16": torch.bfloat16,
    "*fp32": torch.float32,
    "*fp8e4nv": torch.float8_e4m3fn,
    "*fp8e5": torch.float8_e5m2,
}


@op_files(__name__, __path__)
class Triton:
    """The ops in Triton; on a CPU they are interpreted, verified and not timed.

    Args:
        device: `cuda:N`, or `cpu` with the interpreter.
        **options: See `source.Options`.
    """

    name = "triton"

    def __init__(self, device: str, **options: Any) -> None:
        self.options = source.Options(**options)
        self.device = torch.device(device)
        self.interpreted = self.device.type != "cuda"
        if self.interpreted and os.environ.get("TRITON_INTERPRET") != "1":
            raise Unsupported("impl=triton on a CPU needs TRITON_INTERPRET=1 in the environment")
        self.untimed = "interpreted: Triton's interpreter is no measure of the kernel" * self.interpreted
        # Interpreted tiles are small: no call fills so many multiprocessors.
        self.gpu, self.capability = source.Gpu(1 << 20, 0), (0, 0)
        if not self.interpreted:
            properties = torch.cuda.get_device_properties(self.device)
            self.gpu = source.Gpu(properties.multi_processor_count, properties.L2_cache_size)
            self.capability = (properties.major, properties.minor)

    def launcher(self, op: str, *arguments: Any) -> Launcher:
        """See `Impl`; raises Unsupported where the op's method would refuse these arguments."""
        if self.interpreted:
            raise Unsupported("impl=triton on a CPU has no launcher: Triton's interpreter takes no addresses")
        get_method(self, op)  # refuses an op without a file
        file = importlib.import_module(f"{__name__}.{op}")
        plan, _, _ = self._fit(file, *arguments)
        return self._make_launcher(plan)

    def bind_file(self, file: Any, *arguments: Any) -> Call:
        """Bind the op of the file to its arguments; launch nothing for no tokens."""
        if hasattr(file, "bind"):
            made: Call = file.bind(self, *arguments)
            return made
        plan, tensors, num_tokens = self._fit(file, *arguments)
        if not num_tokens:
            return do_nothing
        if self.interpreted:
            return self._interpret(plan, tensors, num_tokens)
        addresses = tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        # Not in the first call, which a CUDA graph may be capturing.
        launch = self._make_launcher(plan).prepare_kernel(num_tokens)

        def call(_alive: tuple[Tensor | None, ...] = tensors) -> None:
            launch(*addresses)

        return call

    def _fit(self, file: Any, *arguments: Any) -> source.Fit:
        plan, tensors, num_tokens = file.fit(*arguments)
        if plan.kernel.converts:
            self._check_fp8()
        return plan, tensors, num_tokens

    def _make_launcher(self, plan: source.Plan) -> Launcher:
        return Launcher(plan, self.device.index or 0, self.gpu, self.options)

    def _interpret(self, plan: source.Plan, tensors: tuple[Tensor | None, ...], num_tokens: int) -> Call:
        kernel, tile = plan.kernel, plan.choose_tile(plan, num_tokens, self.gpu, self.options)
        views = [
            tensor if tensor is None else tensor.view(VIEWS[word])
            for tensor, word in zip(tensors, kernel.pointers, strict=True)
        ]
        grid = (triton.cdiv(num_tokens, tile.tokens) * tile.programs,)
        constants = dict(kernel.constants + tile.constants)
        return functools.partial(kernel.function[grid], *views, num_tokens, *plan.sizes, **constants)

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
