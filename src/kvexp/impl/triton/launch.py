"""Launches without Triton's dispatch, which reads every argument of every call anew.

What is relied on of Triton, in 3.6 and 3.7 alike: `triton.compile` takes an ASTSource; a CompiledKernel has a
`function`, the driver's handle, and in its `metadata` the dynamic shared memory; the kernel's parameters are
those that are no constants, then pointers to scratch memory, which kernels like these have none of.
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
"""Programs that the first dim of a grid holds."""

NO_SCRATCH = (0, 0)
"""Addresses of the scratch memory that Triton's kernels may have, of all programs and for its profiler."""


@functools.cache
def compiled(
    kernel: Kernel,
    tokens: int,
    columns: int,
    slot_first: bool,
    num_warps: int,
    num_stages: int | None,
    device: int,
) -> Any:
    """Return the kernel, loaded on the device: Triton's CompiledKernel."""
    with torch.cuda.device(device):
        target = triton.runtime.driver.active.get_current_target()
        made = triton.compile(
            sources.source(kernel, tokens, columns, slot_first),
            target=target,
            options=compiler_options(num_warps, num_stages),
        )
        made._init_handles()  # loads the binary, as the first look at `run` would
        return made


def compiler_options(num_warps: int, num_stages: int | None) -> dict[str, int]:
    """Return what `triton.compile` is told; what is None is left to Triton."""
    stages = {} if num_stages is None else {"num_stages": num_stages}
    return {"num_warps": num_warps} | stages


class Launcher:
    """Launches one plan's kernel; good for every call whose tensors lead to the plan.

    Args:
        plan: The kernel and its sizes.
        device: Index of the tensors' device, which must be the current one.
        gpu: What tiles depend on of the device.
        options: What the user fixed.
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
        """What launches a call of so many tokens, compiled and loaded.

        Args:
            num_tokens: At least one.

        Returns:
            A function of the addresses of the op's tensors in its order, 0 for one that is not read.

        Raises:
            Unsupported: Triton cannot count so many programs, or the options do not suit the kernel.
        """
        plan = self._plan
        large = sources.is_large(plan.kernel, plan.row_items, num_tokens, self._gpu)
        tokens, columns = sources.tile(plan.kernel, plan.row_items, large, self._options)
        tiles = -(-plan.row_items // columns)
        most_tokens = MOST_PROGRAMS // tiles * tokens
        if num_tokens > most_tokens:
            raise Unsupported(f"impl=triton launches at most {most_tokens} such tokens, not {num_tokens}")
        num_warps = self._options.num_warps or NUM_WARPS
        slot_first = self._options.slot_first
        if slot_first is None:
            slot_first = sources.waits_for_slots(plan.kernel, plan.row_items, num_tokens, self._gpu)
        made = compiled(
            plan.kernel, tokens, columns, slot_first, num_warps, self._options.num_stages, self._device
        )
        ctas = (-(-num_tokens // tokens) * tiles, 1)
        sizes = (num_tokens, *plan.sizes, *NO_SCRATCH)
        threads = num_warps * launch.WARP
        launched = launch.bound(self._device, made.function, ctas, threads, sizes, made.metadata.shared)
        value_at = self._value_at
        if value_at is None:
            return launched

        def packed(key: int, value: int, kv_cache: int, slots: int, k_scale: int, v_scale: int) -> None:
            launched(key, value, kv_cache, kv_cache + value_at, slots, k_scale, v_scale)

        return packed
