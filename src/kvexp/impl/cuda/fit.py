"""The specialisation that fits given tensors, by their dtypes, sizes, strides and alignment."""

import math

from torch import Tensor

from kvexp.impl.cuda.spec import FORMATS, ITEM_BYTES, VECTOR_BYTES, Flash, HeadMajor, Items


def flash(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, items: Items) -> Flash:
    """The specialisation for caches whose items of a head are adjacent; both have the same strides."""
    _, num_heads, head_size = key.shape
    head_size_v = value.shape[2]
    row_strides = (key.stride(0), value.stride(0))
    block_stride, token_stride, head_stride = cache_strides = _strides(key_cache, 3)
    source, cache = items.source_bytes, items.cache_bytes
    vec = widest_vector(
        VECTOR_BYTES // cache,
        math.gcd(head_size, head_size_v),
        (source, alignment(source, row_strides, key, value)),
        (cache, alignment(cache, cache_strides, key_cache, value_cache)),
    )
    return Flash(
        num_heads=num_heads,
        head_size=head_size,
        head_size_v=head_size_v,
        block_size=key_cache.shape[1],
        items=items,
        vec=vec,
        row_strides=row_strides,
        cache_strides=(block_stride, token_stride, head_stride),
    )


def head_major(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, items: Items) -> HeadMajor:
    """The specialisation for a head-major cache, whose blocks are in one piece each."""
    _, num_heads, head_size = key.shape
    row_strides = (key.stride(0), value.stride(0))
    (key_block_stride,), (value_block_stride,) = _strides(key_cache, 1), _strides(value_cache, 1)
    source, cache = items.source_bytes, items.cache_bytes
    chunk = VECTOR_BYTES // cache
    return HeadMajor(
        num_heads=num_heads,
        head_size=head_size,
        block_size=value_cache.shape[3],
        items=items,
        source_vec=widest_vector(chunk, chunk, (source, alignment(source, row_strides, key, value))),
        # The value cache counts too: a launcher is found again by what both addresses have in common.
        key_vec=widest_vector(
            chunk, chunk, (cache, alignment(cache, (key_block_stride,), key_cache, value_cache))
        ),
        row_strides=row_strides,
        block_strides=(key_block_stride, value_block_stride),
    )


def items(key: Tensor, kv_cache_dtype: str, k_scale: Tensor | None, software_fp8: bool) -> Items:
    """What becomes of the items of these tensors; a scale that is not read says nothing."""
    source = str(key.dtype).removeprefix("torch.")
    cache = "COPIED" if ITEM_BYTES[source] == 1 else FORMATS[kv_cache_dtype]
    if cache == "COPIED" or k_scale is None:
        return Items(source, cache)
    return Items(source, cache, scale_per_head=k_scale.numel() > 1, software_fp8=software_fp8)


def widest_vector(largest: int, run: int, *accesses: tuple[int, int]) -> int:
    """Elements of an access: the largest power of two that no run, row or address splits.

    Args:
        largest: The most that there may be, a power of two.
        run: Elements that whole accesses must make up, for example a head's.
        *accesses: For each side that is read or written so, the bytes of its items and the bytes that divide
            every row's address. More than `VECTOR_BYTES` are accessed in pieces of so many.
    """
    vec = largest
    while vec > 1 and (run % vec or any(align % min(VECTOR_BYTES, vec * item) for item, align in accesses)):
        vec //= 2
    return vec


def alignment(item_bytes: int, strides: tuple[int, ...], *tensors: Tensor) -> int:
    """Bytes, `VECTOR_BYTES` at most, that divide each address that the strides, in items, lead to."""
    addresses = (tensor.data_ptr() for tensor in tensors)
    return math.gcd(VECTOR_BYTES, *addresses, *(stride * item_bytes for stride in strides))


def _strides(tensor: Tensor, dims: int) -> tuple[int, ...]:
    """Items from one index of the first dims to the next; 0 for a lone index, whose stride says nothing."""
    return tuple(0 if tensor.shape[dim] == 1 else tensor.stride(dim) for dim in range(dims))
