"""From a specialisation to launches: what is done once for a number of tokens, and what for each call."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvexp.gpu import launch, nvrtc
from kvexp.gpu.launch import Launch
from kvexp.impl.cuda.spec import SOURCES, Options, Spec
from kvexp.impl.cuda.tuning import tuned

MOST_CTAS = 2**31 - 1
"""CTAs of one row of a grid."""

PLANS = 4096
"""Numbers of tokens whose plans are kept; one more costs some microseconds, not a compilation."""


@dataclass(frozen=True)
class Gpu:
    """What a launch depends on of a GPU.

    Attributes:
        index: CUDA's number of it.
        arch: `sm_90` and the like.
        sm_count: Multiprocessors.
    """

    index: int
    arch: str
    sm_count: int


class Launcher:
    """Launches one specialisation; good for every call whose tensors lead to it.

    Args:
        spec: The specialisation.
        options: What the user fixed of it.
        num_slots: Slots of the cache.
        gpu: The tensors' device, which must be the current one.
        value_at: Bytes from K of a head to its V where one cache holds both.

    Attributes:
        plan: From a number of tokens to the grid's CTAs in x and y, a CTA's threads, the kernel, and the
            arguments that follow the addresses. Asking it compiles and loads what such a call needs.
        prepare: From a number of tokens, at least one, to what launches such a call, compiled and loaded: a
            function of the addresses of the op's tensors in its order, 0 for one that is not read.
    """

    def __init__(
        self, spec: Spec, options: Options, num_slots: int, gpu: Gpu, value_at: int | None = None
    ) -> None:
        self.plan = functools.lru_cache(PLANS)(functools.partial(_plan, spec, options, num_slots, gpu))
        self.prepare = functools.lru_cache(PLANS)(
            functools.partial(_prepared, self.plan, gpu.index, value_at)
        )


def grid(threads: int, cta_threads: int) -> tuple[int, int]:
    """CTAs in x and y, whole rows, for so many threads."""
    ctas = -(-threads // cta_threads)
    rows = -(-ctas // MOST_CTAS)
    return -(-ctas // rows), rows


Plan = tuple[tuple[int, int], int, Any, tuple[int, ...]]


def _prepared(plan: Callable[[int], Plan], device: int, value_at: int | None, num_tokens: int) -> Launch:
    ctas, cta_threads, kernel, sizes = plan(num_tokens)
    function = launch.function_of(device, int(kernel.handle))
    launched = launch.bound(device, function, ctas, cta_threads, sizes)
    if value_at is None:
        return launched

    def packed(key: int, value: int, kv_cache: int, slots: int, k_scale: int, v_scale: int) -> None:
        launched(key, value, kv_cache, kv_cache + value_at, slots, k_scale, v_scale)

    return packed


def _plan(spec: Spec, options: Options, num_slots: int, gpu: Gpu, num_tokens: int) -> Plan:
    fitting = tuned(spec, options, num_tokens, gpu.sm_count)
    kernel = nvrtc.kernel(SOURCES / f"{spec.kernel}.cu", spec.kernel, fitting.macros, gpu.arch)
    ctas = grid(fitting.threads(num_tokens), fitting.cta_threads)
    return ctas, fitting.cta_threads, kernel, (*fitting.sizes(num_tokens), num_slots)
