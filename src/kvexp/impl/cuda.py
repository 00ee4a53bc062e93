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
        threads: Threads of a CTA.
        unroll: Chunks of a thread.
    """

    num_heads: int
    head_size: int
    block_size: int
    source: str
    fp8: bool
    vec: int
    threads: int
    unroll: int

    @property
    def macros(self) -> tuple[tuple[str, str | int], ...]:
        """The constants as the macros that the source expects."""
        return (
            ("NUM_HEADS", self.num_heads),
            ("HEAD_SIZE", self.head_size),
            ("BLOCK_SIZE", self.block_size),
            ("SOURCE_BITS", 32 if self.source == "float32" else 16),
            ("SOURCE_IS_BFLOAT16", int(self.source == "bfloat16")),
            ("CACHE_FP8", int(self.fp8)),
            ("VEC", self.vec),
            ("THREADS", self.threads),
            ("UNROLL", self.unroll),
        )

    def grid(self, num_tokens: int) -> int:
        """CTAs that cover `num_tokens` tokens; the constants of the same names in the source."""
        token_chunks = 2 * self.num_heads * self.head_size // self.vec
        cta_chunks = self.threads * self.unroll
        tokens_per_cta = max(1, cta_chunks // token_chunks)
        ctas_per_token = -(-token_chunks // cta_chunks)
        return -(-num_tokens // tokens_per_cta) * ctas_per_token


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


def shape(num_tokens: int, token_chunks: int, sm_count: int) -> tuple[int, int]:
    """Threads of a CTA and chunks of a thread.

    Few chunks are spread over as many threads as there are, since each then waits for one access alone.
    Once every multiprocessor has its 2,048 threads' worth, more accesses in flight per thread hide the
    memory's latency better than more threads do.
    """
    chunks = num_tokens * token_chunks
    if chunks <= sm_count * 2048:
        return 128, 1
    if chunks <= sm_count * 2048 * 4:
        return 256, 2
    return 256, 4


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
        self.device = torch.device(device)
        properties = torch.cuda.get_device_properties(self.device)
        self.sm_count = properties.multi_processor_count
        self.arch = f"sm_{properties.major}{properties.minor}"

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
        spec = self._flash(key, value, key_cache, value_cache, num_tokens, kv_cache_dtype)
        kernel = jit.kernel(FLASH, "reshape_and_cache_flash", spec.macros, self.arch)
        block_stride, token_stride, head_stride, _ = key_cache.stride()
        return self._launch(
            kernel,
            spec.grid(num_tokens),
            spec.threads,
            (key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale),
            num_tokens,
            key_cache.shape[0] * key_cache.shape[1],
            key.stride(0),
            value.stride(0),
            block_stride,
            token_stride,
            head_stride,
        )

    def _flash(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        num_tokens: int,
        kv_cache_dtype: str,
    ) -> Flash:
        _, num_heads, head_size = key.shape
        source_bytes, cache_bytes = key.element_size(), key_cache.element_size()
        vec = widest_vector(
            head_size,
            source_bytes,
            cache_bytes,
            _alignment(source_bytes, (key.stride(0), value.stride(0)), key, value),
            _alignment(cache_bytes, key_cache.stride()[:3], key_cache, value_cache),
        )
        token_chunks = 2 * num_heads * head_size // vec
        threads, unroll = shape(num_tokens, token_chunks, self.sm_count)
        return Flash(
            num_heads=num_heads,
            head_size=head_size,
            block_size=key_cache.shape[1],
            source=str(key.dtype).removeprefix("torch."),
            fp8=kv_cache_dtype != "auto",
            vec=vec,
            threads=threads,
            unroll=unroll,
        )

    def _launch(self, kernel: Any, grid: int, threads: int, tensors: tuple[Tensor, ...], *sizes: int) -> Call:
        """The kernel bound to the tensors' addresses, then the sizes; the tensors stay alive with it."""
        from cuda.core import LaunchConfig, launch

        config = LaunchConfig(grid=grid, block=threads)
        arguments = (*(tensor.data_ptr() for tensor in tensors), *sizes)
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
