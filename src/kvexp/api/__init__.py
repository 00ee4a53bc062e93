"""Offer the ops as library functions that validate a call and launch it as the pipeline does.

Imports nothing of kvexp but bench, impl, op, layout and experiment and the modules below them.

An eager call validates what can be checked without reading memory, and launches on torch's current stream. A
later call with tensors of the same dtypes, sizes and strides is not validated again and costs little more
than its launch. Under torch.compile, and wherever torch's operators are traced, the registered op
`torch.ops.kvexp` takes its place.

All three raise TypeError for an argument of the wrong type, and ValueError for one of a wrong shape, stride,
device or name, or where the implementation cannot do the call; the message names the argument.
"""

from kvexp.api.caches import KVCache, allocate, allocate_layers, select_layout, stride_order
from kvexp.api.dispatch import make_one_cache_function, make_two_cache_function
from kvexp.api.torch_library import ONE_CACHE, TWO_CACHES, register
from kvexp.api.verification import verify

__all__ = [
    "KVCache",
    "allocate",
    "allocate_layers",
    "reshape_and_cache",
    "reshape_and_cache_flash",
    "reshape_and_cache_flash_diffkv",
    "select_layout",
    "stride_order",
    "verify",
]

_OTHERS = """
        slot_mapping: int64 `[num_tokens]`; a negative slot, or one past the last, writes nothing.
        kv_cache_dtype: `auto`, `fp8` (which is `fp8_e4m3`), `fp8_e4m3` or `fp8_e5m2`.
        k_scale: float32 with one element or `[num_heads]`; fp8 stores `key / k_scale`. Not read for `auto`.
        v_scale: The same for values, of the same shape.
        impl: `cuda`, `triton` or `torch`.
        check_slots: Wait for the GPU and raise when a slot is past the last.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is invalid, or the implementation cannot do the call.
    """

reshape_and_cache = make_two_cache_function(
    "reshape_and_cache",
    """Write each token's key and value into its slot of a head-major cache.

    Args:
        key: `[>= num_tokens, num_heads, head_size]`; rows may be any distance apart.
        value: The same.
        key_cache: `[num_blocks, num_heads, head_size / x, block_size, x]`, x the items in 16 bytes; written.
        value_cache: `[num_blocks, num_heads, head_size, block_size]`; written."""
    + _OTHERS,
)

reshape_and_cache_flash = make_two_cache_function(
    "reshape_and_cache_flash",
    """Write each token's key and value into its slot of two caches of FlashAttention's shape.

    With a key cache of five dims, which is head-major, the call is one of `reshape_and_cache`.

    Args:
        key: `[>= num_tokens, num_heads, head_size]`; rows may be any distance apart.
        value: The same.
        key_cache: `[num_blocks, block_size, num_heads, head_size]`, the last dim contiguous, or head-major as
            `reshape_and_cache` takes it; written.
        value_cache: The same with equal strides, or head-major as the key cache is; written."""
    + _OTHERS,
)

reshape_and_cache_flash_diffkv = make_one_cache_function(
    "reshape_and_cache_flash_diffkv",
    """Write each token's key and value into its slot of one cache, K then V in the last dim.

    Args:
        key: `[>= num_tokens, num_heads, head_size]`; rows may be any distance apart.
        value: `[>= num_tokens, num_heads, head_size_v]`.
        kv_cache: `[num_blocks, block_size, num_heads, head_size + head_size_v]`, the last dim contiguous;
            written."""
    + _OTHERS,
)

register(reshape_and_cache, TWO_CACHES)
register(reshape_and_cache_flash, TWO_CACHES)
register(reshape_and_cache_flash_diffkv, ONE_CACHE)
