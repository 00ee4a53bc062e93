"""From a specialisation to launches: what is done once for a number of tokens, and what for each call."""

import ctypes
import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kvexp import jit
from kvexp.impl.cuda.spec import SOURCES, Options, Spec
from kvexp.impl.cuda.tuning import tuned

MOST_CTAS = 2**31 - 1
"""CTAs of one row of a grid."""

PLANS = 4096
"""Numbers of tokens whose plans are kept; one more costs some microseconds, not a compilation."""

NUM_ADDRESSES = 7
"""Of key, value, two caches, slots and two scales."""

ADDRESSES = struct.Struct(f"{NUM_ADDRESSES}Q")

Launch = Callable[..., None]
"""`launch(*addresses)` queues the kernel on torch's current stream; nothing waits for it."""

# Not there in torch's builds without CUDA.
raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


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
    """

    def __init__(
        self, spec: Spec, options: Options, num_slots: int, gpu: Gpu, value_at: int | None = None
    ) -> None:
        self.plan = functools.lru_cache(PLANS)(functools.partial(_plan, spec, options, num_slots, gpu))
        self._device = gpu.index
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


def _launch(
    device: int, grid: tuple[int, int], cta_threads: int, kernel: Any, sizes: tuple[int, ...]
) -> Launch:
    """Queues with the driver's own function: cuda.core's takes up to 2 us more for the same launch.

    Each name is a local: a launch costs the host some 4 us, and a look-up 0.05.
    """
    from cuda.bindings import driver

    (function,) = _driver(device, driver.cuKernelGetFunction, driver.CUkernel(int(kernel.handle)))
    launch, current, streams = driver.cuLaunchKernel, raw_stream, _streams(device)
    pack, spare = ADDRESSES.pack_into, [_parameters(sizes)]
    x, y = grid

    def launched(
        key: int, value: int, key_cache: int, value_cache: int, slots: int, k_scale: int, v_scale: int
    ) -> None:
        try:
            parameters = spare.pop()
        except IndexError:  # another thread is launching
            parameters = _parameters(sizes)
        words, pointers, _alive = parameters
        pack(words, 0, key, value, key_cache, value_cache, slots, k_scale, v_scale)
        stream = streams[current(device)]
        (error,) = launch(function, x, y, 1, cta_threads, 1, 1, 0, stream, pointers, 0)
        if error:
            _driver(device, launch, function, x, y, 1, cta_threads, 1, 1, 0, stream, pointers, 0)
        spare.append(parameters)

    return launched


def _driver(device: int, call: Callable[..., tuple[Any, ...]], *arguments: Any) -> list[Any]:
    """What a function of the driver gives; a thread that has no context yet gets the device's.

    Raises:
        RuntimeError: The driver's words.
    """
    from cuda.bindings import driver

    error, *found = call(*arguments)
    if error == driver.CUresult.CUDA_ERROR_INVALID_CONTEXT:
        torch.cuda.set_device(device)
        error, *found = call(*arguments)
    if error:
        _, words = driver.cuGetErrorString(error)
        raise RuntimeError(f"CUDA error: {words.decode() if words else error}")
    return found


def _parameters(sizes: tuple[int, ...]) -> tuple[Any, int, Any]:
    """Room for a launch's addresses and its sizes, and where the driver finds a pointer to each."""
    words = (ctypes.c_uint64 * (NUM_ADDRESSES + len(sizes)))(*[0] * NUM_ADDRESSES, *sizes)
    first = ctypes.addressof(words)
    pointers = (ctypes.c_void_p * len(words))(*range(first, first + ctypes.sizeof(words), 8))
    return words, ctypes.addressof(pointers), pointers


class Streams(dict[int, Any]):
    """torch's streams of one device as the driver's, by handle; torch owns them."""

    def __missing__(self, handle: int) -> Any:
        from cuda.bindings import driver

        self[handle] = driver.CUstream(handle)
        return self[handle]


@functools.cache
def _streams(_device: int) -> Streams:
    """Each device has a stream whose handle is 0, so each has streams of its own."""
    return Streams()


def grid(threads: int, cta_threads: int) -> tuple[int, int]:
    """CTAs in x and y, whole rows, for so many threads."""
    ctas = -(-threads // cta_threads)
    rows = -(-ctas // MOST_CTAS)
    return -(-ctas // rows), rows


Plan = tuple[tuple[int, int], int, Any, tuple[int, ...]]


def _plan(spec: Spec, options: Options, num_slots: int, gpu: Gpu, num_tokens: int) -> Plan:
    fitting = tuned(spec, options, num_tokens, gpu.sm_count)
    kernel = jit.kernel(SOURCES / f"{spec.kernel}.cu", spec.kernel, fitting.macros, gpu.arch)
    ctas = grid(fitting.threads(num_tokens), fitting.cta_threads)
    return ctas, fitting.cta_threads, kernel, (*fitting.sizes(num_tokens), num_slots)
