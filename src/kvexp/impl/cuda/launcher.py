"""Launch a specialisation: prepare once per number of tokens, then launch each call."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvexp.gpu import launch, nvrtc
from kvexp.gpu.launch import Launch
from kvexp.impl.cuda.spec import SOURCES, Options, Spec
from kvexp.impl.cuda.tuning import tune

MOST_CTAS = 2**31 - 1
"""CTAs of one row of a grid."""

PLANS = 4096
"""Numbers of tokens with a cached plan; a miss costs some microseconds, not a compilation."""


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that a launch depends on.

    Attributes:
        index: CUDA's number of the GPU.
        arch: `sm_90` and the like.
        sm_count: Multiprocessors.
    """

    index: int
    arch: str
    sm_count: int


class Launcher:
    """Launches one specialisation, for every call whose tensors lead to it.

    Args:
        spec: The specialisation.
        options: The user's options.
        num_slots: Slots of the cache.
        gpu: The tensors' device, which must be the current one.
        value_at: Bytes from K of a head to its V where one cache holds both.

    Attributes:
        plan: Takes a number of tokens. Compiles and loads the kernel and returns the grid's CTAs in x and y,
            the threads of a CTA, the kernel, and the arguments that follow the addresses.
        prepare: Takes a number of tokens, at least one. Returns a compiled and loaded launch: a function of
            the addresses of the op's tensors in its order, 0 for one that is not read.
    """

    def __init__(
        self, spec: Spec, options: Options, num_slots: int, gpu: Gpu, value_at: int | None = None
    ) -> None:
        self.plan = functools.lru_cache(PLANS)(functools.partial(_make_plan, spec, options, num_slots, gpu))
        self.prepare = functools.lru_cache(PLANS)(functools.partial(_prepare, self.plan, gpu.index, value_at))


def compute_grid(threads: int, cta_threads: int) -> tuple[int, int]:
    """Return the CTAs in x and y, whole rows, for so many threads."""
    ctas = -(-threads // cta_threads)
    rows = -(-ctas // MOST_CTAS)
    return -(-ctas // rows), rows


Plan = tuple[tuple[int, int], int, Any, tuple[int, ...]]


def _prepare(plan: Callable[[int], Plan], device: int, value_at: int | None, num_tokens: int) -> Launch:
    ctas, cta_threads, kernel, sizes = plan(num_tokens)
    function = launch.get_function(device, int(kernel.handle))
    launch_kernel = launch.bind(device, function, ctas, cta_threads, sizes)
    if value_at is None:
        return launch_kernel

    def launch_packed(key: int, value: int, kv_cache: int, slots: int, k_scale: int, v_scale: int) -> None:
        launch_kernel(key, value, kv_cache, kv_cache + value_at, slots, k_scale, v_scale)

    return launch_packed


def _make_plan(spec: Spec, options: Options, num_slots: int, gpu: Gpu, num_tokens: int) -> Plan:
    tuned = tune(spec, options, num_tokens, gpu.sm_count)
    kernel = nvrtc.load_kernel(SOURCES / f"{spec.kernel}.cu", spec.kernel, tuned.macros, gpu.arch)
    ctas = compute_grid(tuned.threads(num_tokens), tuned.cta_threads)
    return ctas, tuned.cta_threads, kernel, (*tuned.sizes(num_tokens), num_slots)
