"""Allocate memory that is not a GPU's own, as tensors of that GPU: pinned host memory and another GPU's.

The GPU's kernels reach it at its own address, so that whatever fills, reads and checks the GPU's memory does
the same with this.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from kvexp.errors import Unsupported

DEVICE_TYPES = {"cpu": 1, "cuda": 2}
"""DLPack's numbers of torch's types of devices."""

UNSIGNED = 1
"""DLPack's number of unsigned integers."""

PINNED_FLAGS = 3
"""CU_MEMHOSTALLOC_PORTABLE and DEVICEMAP."""


class _DLTensor(ctypes.Structure):
    """DLPack's DLManagedTensor without versions, its tensor's fields first."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_headers: list[object] = []
"""Headers of the tensors that were made: a tensor reads its own when it ends."""


def view_address(address: int, num_bytes: int, device: torch.device) -> Tensor:
    """Return memory as a tensor of a device, which needs not be the one that it belongs to.

    Args:
        address: Where it begins. It must be there as long as the tensor is used.
        num_bytes: Its size.
        device: Whose kernels can reach it.

    Returns:
        uint8 `[num_bytes]`.
    """
    size = (ctypes.c_int64 * 1)(num_bytes)
    header = _DLTensor(
        address, DEVICE_TYPES[device.type], device.index or 0, 1, UNSIGNED, 8, 1, size, None, 0, None, None
    )
    _headers.append((header, size))
    make_capsule = ctypes.pythonapi.PyCapsule_New
    make_capsule.restype, make_capsule.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    made: Tensor = from_dlpack(make_capsule(ctypes.addressof(header), b"dltensor", None))
    return made


@contextmanager
def allocate_pinned(num_bytes: int, device: torch.device) -> Iterator[Tensor]:
    """Allocate pinned host memory inside the block, uint8 `[num_bytes]`, as a tensor of the GPU.

    Raises:
        Unsupported: The system cannot pin so much.
    """
    from cuda.bindings import driver

    torch.cuda.current_stream(device)  # makes the context that the memory is pinned for
    error, address = driver.cuMemHostAlloc(num_bytes, PINNED_FLAGS)
    if error:
        raise Unsupported(
            f"{num_bytes} bytes of host memory cannot be pinned ({error.name}); take fewer "
            "workload.num_blocks or workload.num_layers"
        )
    try:
        yield view_address(int(address), num_bytes, device)
    finally:
        torch.cuda.synchronize(device)
        driver.cuMemFreeHost(address)


@contextmanager
def allocate_peer(num_bytes: int, device: torch.device, peer: torch.device) -> Iterator[Tensor]:
    """Allocate memory of another GPU inside the block, uint8 `[num_bytes]`, as a tensor of the GPU.

    Raises:
        Unsupported: The GPU cannot reach the other's memory.
    """
    from cuda.bindings import runtime

    if not torch.cuda.can_device_access_peer(device, peer):
        raise Unsupported(
            f"{device} cannot reach the memory of {peer}; choose GPUs that NVLink or PCIe joins"
        )
    with torch.cuda.device(device):
        (error,) = runtime.cudaDeviceEnablePeerAccess(peer.index, 0)
    if error not in (runtime.cudaError_t.cudaSuccess, runtime.cudaError_t.cudaErrorPeerAccessAlreadyEnabled):
        raise Unsupported(f"{device} cannot reach the memory of {peer} ({error.name})")
    memory = torch.empty(num_bytes, dtype=torch.uint8, device=peer)
    try:
        yield view_address(memory.data_ptr(), num_bytes, device)
    finally:
        torch.cuda.synchronize(device)
        del memory


def is_on_host(tensor: Tensor) -> bool:
    """Return whether a tensor of a GPU is in pinned host memory."""
    from cuda.bindings import driver

    wanted = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    _, found = driver.cuPointerGetAttribute(wanted, tensor.data_ptr())
    return bool(found == driver.CUmemorytype.CU_MEMORYTYPE_HOST)


def find_peer(device: str) -> str:
    """Return the next GPU that this process sees, after the last the first.

    Raises:
        Unsupported: It sees no other.
    """
    count = torch.cuda.device_count()
    if count < 2:
        raise Unsupported(f"workload.to=peer needs a second GPU, and this process sees {count}")
    return f"cuda:{((torch.device(device).index or 0) + 1) % count}"
