"""Launches without Triton's dispatch, which reads every argument of every call anew.

What is relied on of Triton, in 3.6 and 3.7 alike: `triton.compile` takes an ASTSource; a CompiledKernel's
`run` is called with the grid, a stream, `function`, `packed_metadata`, the launch's metadata and two hooks
(all three may be None), then one argument for each parameter, constants included; a pointer may be an int.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton

from kvexp.errors import Unsupported
from kvexp.impl.triton import source as sources
from kvexp.impl.triton.source import Gpu, Kernel, Options, Plan

NUM_WARPS = 4
MOST_PROGRAMS = 2**31 - 1
"""Triton counts the programs of a launch in an int, and launches nothing when it overflows."""


@functools.cache
def compiled(kernel: Kernel, tokens: int, columns: int, num_warps: int, device: int) -> tuple[Any, ...]:
    """The kernel, loaded on the device: Triton's CompiledKernel, its `run`, `function` and metadata."""
    with torch.cuda.device(device):
        target = triton.runtime.driver.active.get_current_target()
        made = triton.compile(
            sources.source(kernel, tokens, columns), target=target, options={"num_warps": num_warps}
        )
        # The first look at run loads the binary, so run comes before function.
        return made, made.run, made.function, made.packed_metadata


Launch = Callable[..., None]
"""`launch(*addresses)` queues the kernel on torch's current stream; nothing waits for it."""


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
        made = compiled(plan.kernel, tokens, columns, self._options.num_warps or NUM_WARPS, self._device)
        tail = (num_tokens, *plan.sizes, *sources.constants(plan.kernel, 0, 0).values())
        launch = _launch(made, (-(-num_tokens // tokens), tiles), self._device, tail)
        value_at = self._value_at
        if value_at is None:
            return launch

        def packed(key: int, value: int, kv_cache: int, *others: int) -> None:
            launch(key, value, kv_cache, kv_cache + value_at, *others)

        return packed


def _launch(made: tuple[Any, ...], grid: tuple[int, int], device: int, tail: tuple[Any, ...]) -> Launch:
    _alive, run, function, metadata = made
    # The raw stream: torch.cuda's own look at it costs more than the launch may.
    current = torch._C._cuda_getCurrentRawStream
    x, y = grid

    def launched(*addresses: int) -> None:
        run(x, y, 1, current(device), function, metadata, None, None, None, *addresses, *tail)

    return launched
