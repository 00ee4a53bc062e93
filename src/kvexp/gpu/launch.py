"""Launch a kernel with an op's addresses at the least host time, which is what a small call costs.

There are two ways to the driver's `cuLaunchKernel`. The launcher of torch.compile's kernels reads the
arguments in C++ but is not public. Where torch lacks it, cuda.bindings takes the arguments packed in memory,
at 0.7 us more of host time.
"""

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import Any

import torch

WARP = 32

Launch = Callable[..., None]
"""`launch(*addresses)` queues the kernel on torch's current stream and returns at once."""

# torch's builds without CUDA have neither.
raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)
static_launch: Any = getattr(getattr(torch._C, "_StaticCudaLauncher", None), "_launch_kernel", None)


def bind(
    device: int,
    function: int,
    grid: tuple[int, int],
    threads: int,
    sizes: tuple[int, ...],
    num_addresses: int,
    shared_bytes: int = 0,
) -> Launch:
    """Return a launch of the kernel that takes only the addresses.

    Args:
        device: Index of the tensors' device, which must be the current one.
        function: The driver's handle of the kernel, a CUfunction.
        grid: CTAs in x and y.
        threads: Threads of a CTA, whole warps.
        sizes: The arguments after the addresses: 64-bit integers, none negative. Those beyond the kernel's
            parameters are not read.
        num_addresses: Addresses that the kernel takes, as key, value, two caches, slots and two scales.
        shared_bytes: Dynamic shared memory of a CTA.

    Returns:
        A function of so many addresses. It raises RuntimeError with the driver's message.
    """
    if static_launch is None:
        return _bind_driver(device, function, grid, threads, sizes, num_addresses, shared_bytes)
    # Here and below every name is a local: a launch costs the host about 4 us, and a look-up 0.05.
    launch, current = static_launch, raw_stream
    x, y = grid
    warps, types = threads // WARP, "K" * (num_addresses + len(sizes))

    def launch_kernel(*addresses: int) -> None:
        launch(function, x, y, 1, warps, shared_bytes, types, addresses + sizes, current(device))

    return launch_kernel


def _bind_driver(
    device: int,
    function: int,
    grid: tuple[int, int],
    threads: int,
    sizes: tuple[int, ...],
    num_addresses: int,
    shared_bytes: int,
) -> Launch:
    from cuda.bindings import driver

    handle = driver.CUfunction(function)
    launch, current, streams = driver.cuLaunchKernel, raw_stream, get_streams(device)
    spare = [_pack_parameters(num_addresses, sizes)]
    x, y = grid

    def launch_kernel(*addresses: int) -> None:
        try:
            parameters = spare.pop()
        except IndexError:  # another thread is launching
            parameters = _pack_parameters(num_addresses, sizes)
        pack, pointers, _alive = parameters
        pack(*addresses)
        stream = streams[current(device)]
        (error,) = launch(handle, x, y, 1, threads, 1, 1, shared_bytes, stream, pointers, 0)
        if error:
            call_driver(device, launch, handle, x, y, 1, threads, 1, 1, shared_bytes, stream, pointers, 0)
        spare.append(parameters)

    return launch_kernel


def get_function(device: int, kernel: int) -> int:
    """Return the CUfunction handle, which a launch takes, of a CUkernel handle.

    Raises:
        RuntimeError: With the driver's message.
    """
    from cuda.bindings import driver

    (function,) = call_driver(device, driver.cuKernelGetFunction, driver.CUkernel(kernel))
    return int(function)


def call_driver(device: int, call: Callable[..., tuple[Any, ...]], *arguments: Any) -> list[Any]:
    """Call a function of the driver and return its results; give a thread without a context the device's.

    Raises:
        RuntimeError: With the driver's message.
    """
    from cuda.bindings import driver

    error, *results = call(*arguments)
    if error == driver.CUresult.CUDA_ERROR_INVALID_CONTEXT:
        torch.cuda.set_device(device)
        error, *results = call(*arguments)
    if error:
        _, message = driver.cuGetErrorString(error)
        raise RuntimeError(f"CUDA error: {message.decode() if message else error}")
    return results


def _pack_parameters(num_addresses: int, sizes: tuple[int, ...]) -> tuple[Callable[..., None], int, Any]:
    """Return a function that writes the addresses, the address of pointers to all words, and the pointers."""
    words = (ctypes.c_uint64 * (num_addresses + len(sizes)))(*[0] * num_addresses, *sizes)
    first = ctypes.addressof(words)
    pointers = (ctypes.c_void_p * len(words))(*range(first, first + ctypes.sizeof(words), 8))
    pack = functools.partial(struct.Struct(f"{num_addresses}Q").pack_into, words, 0)
    return pack, ctypes.addressof(pointers), pointers


class Streams(dict[int, Any]):
    """The driver's objects of torch's streams of one device, by handle; torch owns the streams."""

    def __missing__(self, handle: int) -> Any:
        from cuda.bindings import driver

        self[handle] = driver.CUstream(handle)
        return self[handle]


@functools.cache
def get_streams(_device: int) -> Streams:
    """Return the device's streams; each device has its own stream with handle 0."""
    return Streams()
