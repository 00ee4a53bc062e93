"""Launch without Triton's dispatch, which inspects every argument of every call.

This relies on the following in Triton 3.6 and 3.7: `triton.compile` takes an ASTSource; a CompiledKernel has
a `function`, the driver's handle, and in its `metadata` the dynamic shared memory; the kernel's parameters
are the arguments that are not constants, then pointers to scratch memory, which these kernels do not use.
"""

import functools
from typing import Any

import torch
import triton

from kvexp.errors import Unsupported
from kvexp.gpu import launch
from kvexp.gpu.launch import Launch
from kvexp.impl.triton import source as sources
from kvexp.impl.triton.source import Gpu, Kernel, Options, Plan

NUM_WARPS = 4
MOST_PROGRAMS = 2**31 - 1
"""Most programs in the first dim of a grid."""

NO_SCRATCH = (0, 0)
"""Addresses of Triton's two scratch memories: the programs' and the profiler's."""


@functools.cache
def compile_kernel(
    kernel: Kernel,
    tokens: int,
    columns: int,
    slot_first: bool,
    num_warps: int,
    num_stages: int | None,
    device: int,
) -> Any:
    """Compile the kernel, load it on the device and return Triton's CompiledKernel."""
    with torch.cuda.device(device):
        target = triton.runtime.driver.active.get_current_target()
        made = triton.compile(
            sources.make_source(kernel, tokens, columns, slot_first),
            target=target,
            options=make_compiler_options(num_warps, num_stages),
        )
        made._init_handles()  # loads the binary, as the first access to `run` would
        return made


def make_compiler_options(num_warps: int, num_stages: int | None) -> dict[str, int]:
    """Return the options of `triton.compile`; None leaves the choice to Triton."""
    stages = {} if num_stages is None else {"num_stages": num_stages}
    return {"num_warps": num_warps} | stages


class Launcher:
    """Launches one plan's kernel, for every call whose tensors lead to the plan.

    Args:
        plan: The kernel and its sizes.
        device: Index of the tensors' device, which must be the current one.
        gpu: The properties of the device that tiles depend on.
        options: The user's options.
        value_at: Bytes from K of a head to its V where one cache holds both.
    """

    def __init__(
        self, plan: Plan, device: int, gpu: Gpu, options: Options, value_at: int | None = None
    ) -> None:
        self._plan = plan
        self._options = options
        self._device = device
        self._gpu = gpu
        self._value_at = value_at

    def prepare(self, num_tokens: int) -> Launch:
        """Compile and load the kernel for so many tokens and return its launch.

        Args:
            num_tokens: At least one.

        Returns:
            A function of the addresses of the op's tensors in its order, 0 for one that is not read.

        Raises:
            Unsupported: The grid would have too many programs, or the options do not suit the kernel.
        """
        plan = self._plan
        large = sources.is_large(plan.kernel, plan.row_items, num_tokens, self._gpu)
        tokens, columns = sources.choose_tile(plan.kernel, plan.row_items, large, self._options)
        tiles = -(-plan.row_items // columns)
        most_tokens = MOST_PROGRAMS // tiles * tokens
        if num_tokens > most_tokens:
            raise Unsupported(f"impl=triton launches at most {most_tokens} such tokens, not {num_tokens}")
        num_warps = self._options.num_warps or NUM_WARPS
        slot_first = self._options.slot_first
        if slot_first is None:
            slot_first = sources.waits_for_slots(plan.kernel, plan.row_items, num_tokens, self._gpu)
        made = compile_kernel(
            plan.kernel, tokens, columns, slot_first, num_warps, self._options.num_stages, self._device
        )
        ctas = (-(-num_tokens // tokens) * tiles, 1)
        sizes = (num_tokens, *plan.sizes, *NO_SCRATCH)
        threads = num_warps * launch.WARP
        launch_kernel = launch.bind(self._device, made.function, ctas, threads, sizes, made.metadata.shared)
        value_at = self._value_at
        if value_at is None:
            return launch_kernel

        def launch_packed(
            key: int, value: int, kv_cache: int, slots: int, k_scale: int, v_scale: int
        ) -> None:
            launch_kernel(key, value, kv_cache, kv_cache + value_at, slots, k_scale, v_scale)

        return launch_packed
