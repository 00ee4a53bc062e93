"""From a specialisation to launches: what is done once for a number of tokens, and what for each call."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from kvexp import jit
from kvexp.impl.cuda.spec import SOURCES, THREADS, Spec

MOST_THREADS = 2**32 - 1
"""Threads that a flat index of 32 bits counts."""

MOST_CTAS = 2**31 - 1
"""CTAs of one row of a grid."""

PLANS = 4096
"""Numbers of tokens whose plans are kept; one more costs some microseconds, not a compilation."""

Launch = Callable[..., None]
"""`launch(*addresses)` queues the kernel on torch's current stream; nothing waits for it."""

# Not there in torch's builds without CUDA.
raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


class Launcher:
    """Launches one specialisation; good for every call whose tensors lead to it.

    Args:
        spec: The specialisation.
        num_slots: Slots of the cache.
        device: Index of the tensors' device, which must be the current one.
        arch: `sm_90` and the like.
        value_at: Bytes from K of a head to its V where one cache holds both.

    Attributes:
        plan: From a number of tokens to the launch configuration, the kernel, and the arguments that follow
            the addresses. Asking it compiles and loads what a call of so many tokens needs.
    """

    def __init__(
        self, spec: Spec, num_slots: int, device: int, arch: str, value_at: int | None = None
    ) -> None:
        self.plan = functools.lru_cache(PLANS)(functools.partial(_plan, spec, num_slots, arch))
        self._device = device
        self._value_at = value_at

    def prepare(self, num_tokens: int) -> Launch:
        """What launches a call of so many tokens, compiled and loaded.

        Args:
            num_tokens: At least one.

        Returns:
            A function of the addresses of the op's tensors in its order, 0 for one that is not read.
        """
        launch = _launch(self._device, *self.plan(num_tokens))
        value_at = self._value_at
        if value_at is None:
            return launch

        def packed(key: int, value: int, kv_cache: int, slots: int, k_scale: int, v_scale: int) -> None:
            launch(key, value, kv_cache, kv_cache + value_at, slots, k_scale, v_scale)

        return packed


def _launch(device: int, config: Any, kernel: Any, sizes: tuple[int, ...]) -> Launch:
    """Each name is a local: a launch costs the host some 4 us, and a look-up 0.05."""
    from cuda.core import launch
    from cuda.core._utils.cuda_utils import CUDAError

    current, streams = raw_stream, _streams(device)

    def launched(
        key: int, value: int, key_cache: int, value_cache: int, slots: int, k_scale: int, v_scale: int
    ) -> None:
        stream = streams[current(device)]
        try:
            launch(
                stream, config, kernel, key, value, key_cache, value_cache, slots, k_scale, v_scale, *sizes
            )
        except CUDAError as error:
            # A thread whose first word to CUDA this is has no context yet.
            if "INVALID_CONTEXT" not in str(error):
                raise
            torch.cuda.set_device(device)
            launch(
                stream, config, kernel, key, value, key_cache, value_cache, slots, k_scale, v_scale, *sizes
            )

    return launched


class Streams(dict[int, Any]):
    """torch's streams of one device as cuda.core's, by handle; torch owns them."""

    def __missing__(self, handle: int) -> Any:
        from cuda.core import Stream

        self[handle] = Stream.from_handle(handle)
        return self[handle]


@functools.cache
def _streams(_device: int) -> Streams:
    """Each device has a stream whose handle is 0, so each has streams of its own."""
    return Streams()


def grid(threads: int) -> tuple[int, int]:
    """CTAs in x and y, whole rows, for so many threads."""
    ctas = -(-threads // THREADS)
    rows = -(-ctas // MOST_CTAS)
    return -(-ctas // rows), rows


def _plan(spec: Spec, num_slots: int, arch: str, num_tokens: int) -> tuple[Any, Any, tuple[int, ...]]:
    from cuda.core import LaunchConfig

    threads = spec.threads(num_tokens)
    fitting = replace(spec, wide_index=threads > MOST_THREADS)
    kernel = jit.kernel(SOURCES / f"{spec.kernel}.cu", spec.kernel, fitting.macros, arch)
    config = LaunchConfig(grid=grid(threads), block=THREADS)
    return config, kernel, (*spec.sizes(num_tokens), num_slots)
