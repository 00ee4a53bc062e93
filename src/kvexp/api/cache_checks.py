"""Check the caches of a call; each check returns the number of slots or raises ValueError."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kvexp.layout.head_major import PIECE_BYTES


def has_strides(tensor: Tensor, strides: Sequence[int | None]) -> bool:
    """Return whether the tensor has these strides; None, and any dim of one element or none, matches all."""
    return not tensor.numel() or all(
        size == 1 or wanted is None or stride == wanted
        for size, stride, wanted in zip(tensor.shape, tensor.stride(), strides, strict=True)
    )


def format_shape(tensor: Tensor) -> str:
    """Return the shape as an error shows it."""
    return str(list(tensor.shape))


def format_dtype(dtype: torch.dtype) -> str:
    """Return the dtype's name without `torch.`."""
    return str(dtype).removeprefix("torch.")


def find_op(op: str, key_cache: Any) -> str:
    """Return the op that writes such a key cache: a cache of five dims is head-major.

    The launcher of vLLM's Triton kernel for the flash op decides by the same dims.
    """
    five = isinstance(key_cache, Tensor) and key_cache.dim() == 5
    return "reshape_and_cache" if op == "reshape_and_cache_flash" and five else op


def check_flash(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor) -> int:
    """Check that two caches of FlashAttention's shape fit the rows."""
    if key_cache.dim() != 4:
        _, num_heads, head_size = key.shape
        raise ValueError(
            f"key_cache must be [num_blocks, block_size, {num_heads}, {head_size}], or head-major "
            f"[num_blocks, {num_heads}, {head_size} / x, block_size, x], not {format_shape(key_cache)}"
        )
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        _check_flash_cache(name, cache, key.shape[1], key.shape[2], "head_size")
    if value_cache.shape != key_cache.shape:
        raise ValueError(
            f"value_cache must be {format_shape(key_cache)} as key_cache is, not {format_shape(value_cache)}"
        )
    if not has_strides(value_cache, key_cache.stride()):
        raise ValueError(
            f"value_cache must have the strides of key_cache, {key_cache.stride()}, "
            f"not {value_cache.stride()}"
        )
    return key_cache.shape[0] * key_cache.shape[1]


def check_diffkv(key: Tensor, value: Tensor, kv_cache: Tensor) -> int:
    """Check that one cache of K then V fits the rows."""
    width = key.shape[2] + value.shape[2]
    _check_flash_cache("kv_cache", kv_cache, key.shape[1], width, "head_size + head_size_v")
    return kv_cache.shape[0] * kv_cache.shape[1]


def _check_flash_cache(name: str, cache: Tensor, num_heads: int, width: int, what: str) -> None:
    if cache.dim() != 4 or tuple(cache.shape[2:]) != (num_heads, width):
        raise ValueError(
            f"{name} must be [num_blocks, block_size, {num_heads}, {width}] (num_heads, {what}), "
            f"not {format_shape(cache)}"
        )
    if not has_strides(cache, (None, None, None, 1)):
        raise ValueError(f"{name} must have a contiguous last dim, not the strides {cache.stride()}")
    _check_own_memory(name, cache)


def check_head_major(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor) -> int:
    """Check that two head-major caches fit the rows."""
    _, num_heads, head_size = key.shape
    x = PIECE_BYTES // key_cache.itemsize
    if head_size % x:
        raise ValueError(f"key must have heads of a multiple of {x} elements, not {head_size}")
    if value_cache.dim() != 4 or tuple(value_cache.shape[1:3]) != (num_heads, head_size):
        raise ValueError(
            f"value_cache must be [num_blocks, {num_heads}, {head_size}, block_size], "
            f"not {format_shape(value_cache)}"
        )
    num_blocks, _, _, block_size = value_cache.shape
    wanted = (num_blocks, num_heads, head_size // x, block_size, x)
    if tuple(key_cache.shape) != wanted:
        raise ValueError(
            f"key_cache must be {list(wanted)} to fit value_cache, not {format_shape(key_cache)}"
        )
    inside = (head_size * block_size, block_size * x, x, 1)
    for name, cache, strides in (
        ("key_cache", key_cache, (None, *inside)),
        ("value_cache", value_cache, (None, head_size * block_size, block_size, 1)),
    ):
        if not has_strides(cache, strides):
            raise ValueError(
                f"{name} must be contiguous inside a block, not have the strides {cache.stride()}"
            )
        _check_own_memory(name, cache)
    return num_blocks * block_size


CACHES: dict[str, Callable[..., int]] = {
    "reshape_and_cache": check_head_major,
    "reshape_and_cache_flash": check_flash,
    "reshape_and_cache_flash_diffkv": check_diffkv,
}


def _check_own_memory(name: str, cache: Tensor) -> None:
    if not cache.numel():
        return
    reach = 0
    for stride, size in sorted(zip(cache.stride(), cache.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise ValueError(
                f"{name} must have memory of its own for each element, not the strides {cache.stride()}"
            )
        reach += (size - 1) * stride if size > 1 else 0
