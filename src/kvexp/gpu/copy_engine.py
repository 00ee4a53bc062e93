"""Copy by a GPU's copy engines: one contiguous copy, a batch of them, or rectangles of rows.

Addresses and sizes are the host's to give, so they are as they were when a copy is submitted, or captured.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvexp.errors import Unsupported
from kvexp.gpu.launch import call_driver, get_streams, raw_stream

BATCH_VERSION = 13000
"""CUDA's version whose cuMemcpyBatchAsync has the arguments that `_load_batch` declares."""

Addresses = NDArray[np.int64]


def bind_copy(to: torch.Tensor, source: torch.Tensor) -> Callable[[], None]:
    """Return a function that copies a contiguous tensor on torch's current stream.

    Args:
        to: Contiguous, on a GPU or in memory that one reaches; written.
        source: As many bytes.
    """
    from cuda.bindings import driver

    device, num_bytes = to.device.index, source.nbytes
    streams = get_streams(device)

    def copy(_alive: tuple[torch.Tensor, ...] = (to, source)) -> None:
        stream = streams[raw_stream(device)]
        call_driver(device, driver.cuMemcpyAsync, to.data_ptr(), source.data_ptr(), num_bytes, stream)

    return copy


class Batch:
    """A batch of copies, which one call of cuMemcpyBatchAsync submits in no order.

    Args:
        device: Index of the GPU, which must be the current one when the batch is submitted.

    Raises:
        Unsupported: The driver is older than CUDA 13.
    """

    def __init__(self, device: int) -> None:
        from cuda.bindings import driver

        self._function, self._device = _load_batch(), device
        self._attributes = driver.CUmemcpyAttributes()
        self._attributes.srcAccessOrder = driver.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
        self._first = ctypes.c_size_t(0)

    def set_copies(self, source: Addresses, to: Addresses, num_bytes: Addresses) -> None:
        """Set what is copied: the addresses and the bytes of each copy."""
        self._arrays = tuple(np.ascontiguousarray(each) for each in (to, source, num_bytes))
        self._pointers = tuple(each.ctypes.data for each in self._arrays)

    def submit(self) -> None:
        """Submit the copies to torch's current stream.

        Raises:
            RuntimeError: With the driver's message.
            Unsupported: A CUDA graph is being captured; it would keep the addresses of that moment.
        """
        check_not_captured()
        attributes, first = self._attributes.getPtr(), ctypes.byref(self._first)
        count, stream = len(self._arrays[0]), raw_stream(self._device)
        _raise_error(self._function(*self._pointers, count, attributes, first, 1, stream))


class Rectangles:
    """Rectangles of rows, each copied by one call of cuMemcpy2DAsync.

    Args:
        device: Index of the GPU, which must be the current one when they are submitted.
        row_bytes: Bytes of a row.
        rows: Rows of a rectangle.
        source_step: Bytes from one row to the next in the source.
        step: The same in the destination.
    """

    def __init__(self, device: int, row_bytes: int, rows: int, source_step: int, step: int) -> None:
        from cuda.bindings import driver

        self._device, self._streams, self._copy = device, get_streams(device), driver.cuMemcpy2DAsync
        self._sizes = {
            "srcPitch": max(source_step, row_bytes),
            "dstPitch": max(step, row_bytes),
            "WidthInBytes": row_bytes,
            "Height": rows,
        }
        self._copies: list[Any] = []

    def set_copies(self, source: Addresses, to: Addresses) -> None:
        """Set the addresses of each rectangle's first byte."""
        from cuda.bindings import driver

        while len(self._copies) < len(to):
            made = driver.CUDA_MEMCPY2D()
            made.srcMemoryType = made.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_UNIFIED
            for name, value in self._sizes.items():
                setattr(made, name, value)
            self._copies.append(made)
        for made, address, source_address in zip(self._copies, to.tolist(), source.tolist(), strict=True):
            made.dstDevice, made.srcDevice = address, source_address

    def submit(self) -> None:
        """Submit the copies, in order, to torch's current stream.

        Raises:
            RuntimeError: With the driver's message.
            Unsupported: A CUDA graph is being captured; it would keep the addresses of that moment.
        """
        check_not_captured()
        stream, copy = self._streams[raw_stream(self._device)], self._copy
        for each in self._copies:
            (error,) = copy(each, stream)
            if error:
                _raise_error(int(error))


def check_not_captured() -> None:
    """Check that no CUDA graph is being captured.

    Raises:
        Unsupported: One is.
    """
    if torch.cuda.is_current_stream_capturing():
        raise Unsupported(
            "copy engines take addresses from the host, and a CUDA graph would keep those of its capture; "
            "take mode=no_graph"
        )


@functools.cache
def _load_batch() -> Any:
    """Return the driver's cuMemcpyBatchAsync, which takes arrays as they are in memory."""
    from cuda.bindings import driver

    error, address, _ = driver.cuGetProcAddress(b"cuMemcpyBatchAsync", BATCH_VERSION, 0)
    if error or not address:
        raise Unsupported("batches of copies need a driver of CUDA 13 or newer; impl=memcpy2d needs none")
    pointer = ctypes.c_void_p
    declared = (pointer, pointer, pointer, ctypes.c_size_t, pointer, pointer, ctypes.c_size_t, pointer)
    return ctypes.CFUNCTYPE(ctypes.c_int, *declared)(int(address))


def _raise_error(error: int) -> None:
    """Raise the driver's error, where it is one."""
    from cuda.bindings import driver

    if error:
        _, message = driver.cuGetErrorString(driver.CUresult(error))
        raise RuntimeError(f"CUDA error: {message.decode() if message else error}")
