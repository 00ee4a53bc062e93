"""cuda: CUDA C++ kernels, compiled with NVRTC for the sizes at hand, launched on torch's current stream."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvexp import jit
from kvexp.errors import Unsupported
from kvexp.op import Call

FLASH = Path(__file__).with_name("reshape_and_cache_flash.cu")
VECTOR_BYTES = 16
"""The widest access of one thread."""

THREADS = 128


@dataclass(frozen=True)
class Flash:
    """The compile-time constants of one specialisation of reshape_and_cache_flash.cu.

    Attributes:
        num_heads: KV heads of a token.
        head_size: Elements of a head.
        block_size: Slots of a block.
        source: `float16`, `bfloat16` or `float32`.
        fp8: The cache holds e4m3 codes, not the source's items.
        vec: Elements of a chunk.
        row_strides: Items from one row to the next, of key and of value.
        cache_strides: Items from one block, token and head to the next.
        wide_index: The flat index needs 64 bits.
    """

    num_heads: int
    head_size: int
    block_size: int
    source: str
    fp8: bool
    vec: int
    row_strides: tuple[int, int]
    cache_strides: tuple[int, int, int]
    wide_index: bool

    @property
    def both(self) -> bool:
        """Whether a thread moves a chunk of K and the same of V, not one of either.

        Copying, the second access is free and halves the arithmetic of places. Converting to fp8 is itself
        arithmetic, which more threads finish sooner.
        """
        return not self.fp8

    @property
    def token_chunks(self) -> int:
        """Threads of one token."""
        return (1 if self.both else 2) * self.num_heads * self.head_size // self.vec

    @property
    def macros(self) -> tuple[tuple[str, str | int], ...]:
        """The constants as the macros that the source expects."""
        key_stride, value_stride = self.row_strides
        block_stride, token_stride, head_stride = self.cache_strides
        return (
            ("NUM_HEADS", self.num_heads),
            ("HEAD_SIZE", self.head_size),
            ("BLOCK_SIZE", self.block_size),
            ("SOURCE_BITS", 32 if self.source == "float32" else 16),
            ("SOURCE_IS_BFLOAT16", int(self.source == "bfloat16")),
            ("CACHE_FP8", int(self.fp8)),
            ("VEC", self.vec),
            ("KEY_STRIDE", f"{key_stride}ll"),
            ("VALUE_STRIDE", f"{value_stride}ll"),
            ("BLOCK_STRIDE", f"{block_stride}ll"),
            ("TOKEN_STRIDE", f"{token_stride}ll"),
            ("HEAD_STRIDE", f"{head_stride}ll"),
            ("BOTH", int(self.both)),
            ("WIDE_INDEX", int(self.wide_index)),
            ("THREADS", THREADS),
        )


def widest_vector(
    head_size: int, source_bytes: int, cache_bytes: int, source_align: int, cache_align: int
) -> int:
    """Elements of a chunk: the largest power of two that no head, row or address splits.

    Args:
        head_size: A chunk must not cross a head.
        source_bytes: Bytes of a source item.
        cache_bytes: Bytes of a cache item; the smaller of both fills the widest access.
        source_align: Bytes that divide every source row's address.
        cache_align: Bytes that divide every cache row's address.
    """
    vec = VECTOR_BYTES // cache_bytes
    while vec > 1 and (
        head_size % vec
        or source_align % min(VECTOR_BYTES, vec * source_bytes)
        or cache_align % min(VECTOR_BYTES, vec * cache_bytes)
    ):
        vec //= 2
    return vec


class Cuda:
    """The ops in CUDA C++; sizes are compile-time constants, one cubin each, cached on disk."""

    name = "cuda"
    untimed = ""

    def __init__(self, device: str) -> None:
        if not device.startswith("cuda"):
            none = "this machine has none" if not torch.cuda.is_available() else "device=cpu is not"
            raise Unsupported(
                f"impl=cuda needs an NVIDIA GPU and {none}; try impl=torch workload=tiny, "
                "or experiment=quickstart for what this machine can run"
            )
        try:
            import cuda.core  # noqa: F401  # asked for here, so that its absence is a reason, not an error
        except ImportError as error:
            raise Unsupported(
                f"impl=cuda needs the package cuda-core[cu13], which cannot be imported: {error}"
            ) from error
        self.device = torch.device(device)
        major, minor = torch.cuda.get_device_capability(self.device)
        self.arch = f"sm_{major}{minor}"

    def reshape_and_cache_flash(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor,
        v_scale: Tensor,
    ) -> Call:
        """`op.reshape_and_cache_flash` bound to these tensors; nothing is launched for no tokens."""
        num_tokens = slot_mapping.shape[0]
        if not num_tokens:
            return _nothing
        spec = self.flash(key, value, key_cache, value_cache, num_tokens, kv_cache_dtype)
        kernel = jit.kernel(FLASH, "reshape_and_cache_flash", spec.macros, self.arch)
        tensors = (key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale)
        num_slots = key_cache.shape[0] * key_cache.shape[1]
        return self.launch(kernel, tensors, num_tokens * spec.token_chunks, num_slots)

    def flash(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        num_tokens: int,
        kv_cache_dtype: str,
    ) -> Flash:
        """The specialisation for these tensors."""
        _, num_heads, head_size = key.shape
        source_bytes, cache_bytes = key.element_size(), key_cache.element_size()
        row_strides = (key.stride(0), value.stride(0))
        block_stride, token_stride, head_stride, _ = key_cache.stride()
        cache_strides = (block_stride, token_stride, head_stride)
        vec = widest_vector(
            head_size,
            source_bytes,
            cache_bytes,
            _alignment(source_bytes, row_strides, key, value),
            _alignment(cache_bytes, cache_strides, key_cache, value_cache),
        )
        return Flash(
            num_heads=num_heads,
            head_size=head_size,
            block_size=key_cache.shape[1],
            source=str(key.dtype).removeprefix("torch."),
            fp8=kv_cache_dtype != "auto",
            vec=vec,
            row_strides=row_strides,
            cache_strides=cache_strides,
            wide_index=2 * num_tokens * num_heads * head_size // vec >= 2**32,
        )

    def launch(self, kernel: Any, tensors: tuple[Tensor, ...], threads: int, *sizes: int) -> Call:
        """The kernel bound to the tensors' addresses, its number of threads, and the sizes.

        The tensors stay alive with the call.
        """
        from cuda.core import LaunchConfig, launch

        config = LaunchConfig(grid=-(-threads // THREADS), block=THREADS)
        arguments = (*(tensor.data_ptr() for tensor in tensors), threads, *sizes)
        index = self.device.index

        def call(_alive: tuple[Tensor, ...] = tensors) -> None:
            launch(_stream(torch._C._cuda_getCurrentRawStream(index)), config, kernel, *arguments)

        return call


def _alignment(item_bytes: int, strides: tuple[int, ...], *tensors: Tensor) -> int:
    """Bytes that divide the address of every row of the tensors, which all have these strides in items."""
    addresses = (tensor.data_ptr() for tensor in tensors)
    return math.gcd(*addresses, *(stride * item_bytes for stride in strides))


@functools.cache
def _stream(handle: int) -> Any:
    """torch's stream as one of cuda.core's; torch owns it."""
    from cuda.core import Stream

    return Stream.from_handle(handle)


def _nothing() -> None:
    """The call for no tokens."""
