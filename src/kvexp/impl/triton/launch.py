"""Launch without Triton's dispatch, which inspects every argument of every call.

This relies on the following in Triton 3.6 and 3.7: `triton.compile` takes an ASTSource; a CompiledKernel has
a `function`, the driver's handle, and in its `metadata` the dynamic shared memory; the kernel's parameters
are the arguments that are not constants, then pointers to scratch memory, which these kernels do not use.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton

from kvexp.errors import Unsupported
from kvexp.gpu import launch
from kvexp.gpu.launch import Launch
from kvexp.impl.triton.source import Gpu, Kernel, Options, Plan, Tile, make_source

NUM_WARPS = 4
MOST_PROGRAMS = 2**31 - 1
"""Most programs in the first dim of a grid."""

NO_SCRATCH = (0, 0)
"""Addresses of Triton's two scratch memories: the programs' and the profiler's."""


@functools.cache
def compile_kernel(kernel: Kernel, tile: Tile, num_warps: int, num_stages: int | None, device: int) -> Any:
    """Compile the kernel, load it on the device and return Triton's CompiledKernel."""
    with torch.cuda.device(device):
        target = triton.runtime.driver.active.get_current_target()
        made = triton.compile(
            make_source(kernel, tile), target=target, options=make_compiler_options(num_warps, num_stages)
        )
        made._init_handles()  # loads the binary, as the first access to `run` would
        return made


def make_compiler_options(num_warps: int, num_stages: int | None) -> dict[str, int]:
    """Return the options of `triton.compile`; None leaves the choice to Triton."""
    stages = {} if num_stages is None else {"num_stages": num_stages}
    return {"num_warps": num_warps} | stages


@dataclass(frozen=True)
class Launcher:
    """Launches one plan's kernel, for every call whose tensors lead to the plan.

    Attributes:
        plan: The kernel and its sizes.
        device: Index of the tensors' device, which must be the current one.
        gpu: The properties of the device that tiles depend on.
        options: The user's options.
    """

    plan: Plan
    device: int
    gpu: Gpu
    options: Options

    def prepare(self, num_tokens: int) -> Launch:
        """Compile and load the kernel for so many tokens, at least one, and return its launch.

        That takes the addresses of the op's tensors in its order, 0 for one that is not read.

        Raises:
            Unsupported: The grid would have too many programs, or the options do not suit the kernel.
        """
        return self.plan.adapt(self.prepare_kernel(num_tokens))

    def prepare_kernel(self, num_tokens: int) -> Launch:
        """Return the same as a function of the addresses of the kernel's tensors."""
        plan, options = self.plan, self.options
        tile = plan.choose_tile(plan, num_tokens, self.gpu, options)
        most_tokens = MOST_PROGRAMS // tile.programs * tile.tokens
        if num_tokens > most_tokens:
            raise Unsupported(f"impl=triton launches at most {most_tokens} such tokens, not {num_tokens}")
        num_warps = options.num_warps or NUM_WARPS
        made = compile_kernel(plan.kernel, tile, num_warps, options.num_stages, self.device)
        ctas = (-(-num_tokens // tile.tokens) * tile.programs, 1)
        sizes = (num_tokens, *plan.sizes, *NO_SCRATCH)
        threads, pointers = num_warps * launch.WARP, len(plan.kernel.pointers)
        return launch.bind(self.device, made.function, ctas, threads, sizes, pointers, made.metadata.shared)
