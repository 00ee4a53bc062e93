"""The launch of a kernel with an op's addresses: what a small call costs is the host's time for it.

There are two ways to the driver's `cuLaunchKernel`: the launcher of torch.compile's compiled kernels, which
reads the arguments in C++ but is not public, and where torch lacks it, cuda.bindings with the arguments
packed into memory, which takes the host 0.7 us more.
"""

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import Any

import torch

NUM_ADDRESSES = 7
"""Of key, value, two caches, slots and two scales."""

ADDRESSES = struct.Struct(f"{NUM_ADDRESSES}Q")
WARP = 32

Launch = Callable[..., None]
"""`launch(*addresses)` queues the kernel on torch's current stream; nothing waits for it."""

# Neither is there in torch's builds without CUDA.
raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)
static_launch: Any = getattr(getattr(torch._C, "_StaticCudaLauncher", None), "_launch_kernel", None)


def bound(
    device: int,
    function: int,
    grid: tuple[int, int],
    threads: int,
    sizes: tuple[int, ...],
    shared_bytes: int = 0,
) -> Launch:
    """A launch that lacks the addresses alone.

    Args:
        device: Index of the tensors' device, which must be the current one.
        function: The driver's handle of the kernel, a CUfunction.
        grid: CTAs in x and y.
        threads: Threads of a CTA, whole warps.
        sizes: What follows the addresses: integers of 64 bits, none negative. More of them than the kernel
            has parameters are not read.
        shared_bytes: Dynamic shared memory of a CTA.

    Returns:
        A function of `NUM_ADDRESSES` addresses. It raises RuntimeError with the driver's words.
    """
    make = _by_driver if static_launch is None else _by_torch
    return make(device, function, grid, threads, sizes, shared_bytes)


# Below each name is a local: a launch costs the host some 4 us, and a look-up 0.05.


def _by_torch(
    device: int, function: int, grid: tuple[int, int], threads: int, sizes: tuple[int, ...], shared_bytes: int
) -> Launch:
    launch, current = static_launch, raw_stream
    x, y = grid
    warps, types = threads // WARP, "K" * (NUM_ADDRESSES + len(sizes))

    def launched(
        key: int, value: int, key_cache: int, value_cache: int, slots: int, k_scale: int, v_scale: int
    ) -> None:
        arguments = (key, value, key_cache, value_cache, slots, k_scale, v_scale, *sizes)
        launch(function, x, y, 1, warps, shared_bytes, types, arguments, current(device))

    return launched


def _by_driver(
    device: int, function: int, grid: tuple[int, int], threads: int, sizes: tuple[int, ...], shared_bytes: int
) -> Launch:
    from cuda.bindings import driver

    handle = driver.CUfunction(function)
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
        (error,) = launch(handle, x, y, 1, threads, 1, 1, shared_bytes, stream, pointers, 0)
        if error:
            _said(device, launch, handle, x, y, 1, threads, 1, 1, shared_bytes, stream, pointers, 0)
        spare.append(parameters)

    return launched


def function_of(device: int, kernel: int) -> int:
    """The handle that a launch takes, a CUfunction, of a CUkernel's.

    Raises:
        RuntimeError: The driver's words.
    """
    from cuda.bindings import driver

    (function,) = _said(device, driver.cuKernelGetFunction, driver.CUkernel(kernel))
    return int(function)


def _said(device: int, call: Callable[..., tuple[Any, ...]], *arguments: Any) -> list[Any]:
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
