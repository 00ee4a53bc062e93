"""Choose the specialisation for given tensors by their dtypes, sizes, strides and alignment."""

import math

from torch import Tensor

from kvexp.impl.cuda.spec import FORMATS, ITEM_BYTES, VECTOR_BYTES, Flash, HeadMajor, Items


def fit_flash(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, items: Items) -> Flash:
    """Return the specialisation for two caches of equal strides whose heads are contiguous."""
    _, num_heads, head_size = key.shape
    head_size_v = value.shape[2]
    row_strides = (key.stride(0), value.stride(0))
    block_stride, token_stride, head_stride = cache_strides = _get_strides(key_cache, 3)
    source, cache = items.source_bytes, items.cache_bytes
    vec = choose_vector(
        VECTOR_BYTES // cache,
        math.gcd(head_size, head_size_v),
        (source, find_alignment(source, row_strides, key, value)),
        (cache, find_alignment(cache, cache_strides, key_cache, value_cache)),
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


def fit_head_major(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, items: Items
) -> HeadMajor:
    """Return the specialisation for head-major caches, whose blocks are contiguous."""
    _, num_heads, head_size = key.shape
    row_strides = (key.stride(0), value.stride(0))
    (key_block_stride,), (value_block_stride,) = _get_strides(key_cache, 1), _get_strides(value_cache, 1)
    source, cache = items.source_bytes, items.cache_bytes
    chunk = VECTOR_BYTES // cache
    return HeadMajor(
        num_heads=num_heads,
        head_size=head_size,
        block_size=value_cache.shape[3],
        items=items,
        source_vec=choose_vector(chunk, chunk, (source, find_alignment(source, row_strides, key, value))),
        # The value cache counts too: a cached launcher is found by the common alignment of both.
        key_vec=choose_vector(
            chunk, chunk, (cache, find_alignment(cache, (key_block_stride,), key_cache, value_cache))
        ),
        row_strides=row_strides,
        block_strides=(key_block_stride, value_block_stride),
    )


def fit_items(key: Tensor, kv_cache_dtype: str, k_scale: Tensor | None, software_fp8: bool) -> Items:
    """Return how the items of these tensors are converted; a scale that is not read is ignored."""
    source = str(key.dtype).removeprefix("torch.")
    cache = "COPIED" if ITEM_BYTES[source] == 1 else FORMATS[kv_cache_dtype]
    if cache == "COPIED" or k_scale is None:
        return Items(source, cache)
    return Items(source, cache, scale_per_head=k_scale.numel() > 1, software_fp8=software_fp8)


def choose_vector(largest: int, run: int, *accesses: tuple[int, int]) -> int:
    """Return the elements of one access: the largest power of two that runs, rows and addresses allow.

    Args:
        largest: The upper limit, a power of two.
        run: Elements that must be a whole number of accesses, for example a head's.
        *accesses: For each side, the bytes of its items and the bytes that divide every row's address. More
            than `VECTOR_BYTES` are accessed in pieces of that size.
    """
    vec = largest
    while vec > 1 and (run % vec or any(align % min(VECTOR_BYTES, vec * item) for item, align in accesses)):
        vec //= 2
    return vec


def find_alignment(item_bytes: int, strides: tuple[int, ...], *tensors: Tensor) -> int:
    """Return the bytes, `VECTOR_BYTES` at most, that divide every address at these strides in items."""
    addresses = (tensor.data_ptr() for tensor in tensors)
    return math.gcd(VECTOR_BYTES, *addresses, *(stride * item_bytes for stride in strides))


def _get_strides(tensor: Tensor, dims: int) -> tuple[int, ...]:
    """Return the strides of the first dims; 0 for a dim of size 1, whose stride is arbitrary."""
    return tuple(0 if tensor.shape[dim] == 1 else tensor.stride(dim) for dim in range(dims))
