"""The ops as library functions: validated, then launched as the pipeline launches them.

An eager call validates what can be known without looking into memory, and launches on torch's current
stream. What was valid once is valid again for tensors of the same types, sizes and strides, so that a later
call of a kind costs little more than its launch. Under torch.compile, and wherever torch's operators are
traced, the registered op `torch.ops.kvexp` takes its place.

All three raise TypeError for an argument of the wrong type, and ValueError for one whose shape, strides,
device or word will not do, or where the implementation cannot; the message names the argument.
"""

from kvexp.api.caches import KVCache, allocate, allocate_layers, select_layout, stride_order
from kvexp.api.dispatch import one_cache, two_caches
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
        ValueError: An argument will not do, or the implementation cannot.
    """

reshape_and_cache = two_caches(
    "reshape_and_cache",
    """Each token's key and value are in its slot of a head-major cache.

    Args:
        key: `[>= num_tokens, num_heads, head_size]`; rows may be any distance apart.
        value: The same.
        key_cache: `[num_blocks, num_heads, head_size / x, block_size, x]`, x the items of 16 bytes; written.
        value_cache: `[num_blocks, num_heads, head_size, block_size]`; written."""
    + _OTHERS,
)

reshape_and_cache_flash = two_caches(
    "reshape_and_cache_flash",
    """Write each token's key and value into its slot of two caches of FlashAttention's shape.

    A key cache of five dims is a head-major one: the call is then that of `reshape_and_cache`.

    Args:
        key: `[>= num_tokens, num_heads, head_size]`; rows may be any distance apart.
        value: The same.
        key_cache: `[num_blocks, block_size, num_heads, head_size]`, the last dim contiguous, or head-major as
            `reshape_and_cache` takes it; written.
        value_cache: The same, of equal strides, or head-major with its key cache; written."""
    + _OTHERS,
)

reshape_and_cache_flash_diffkv = one_cache(
    "reshape_and_cache_flash_diffkv",
    """Each token's key and value are in its slot of one cache, K then V in the last dim.

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
