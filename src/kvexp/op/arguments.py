"""Check the arguments of a call of the library; each error names one, what it is and what it can be."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvexp.op import Op, ValidCall
from kvexp.op.quantize import SOURCES

if TYPE_CHECKING:
    from kvexp.op.cache_write import CacheWrite

ALIASES = {"fp8": "fp8_e4m3"}


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


def resolve_format(kv_cache_dtype: Any, formats: Sequence[str] = Op.formats) -> str:
    """Return one of the formats, which an alias may name.

    Raises:
        TypeError: The argument is not a str.
        ValueError: It is another word.
    """
    if not isinstance(kv_cache_dtype, str):
        raise TypeError(f"kv_cache_dtype must be a str, not {type(kv_cache_dtype).__name__}")
    resolved = ALIASES.get(kv_cache_dtype, kv_cache_dtype)
    if resolved not in formats:
        aliases = (alias for alias, name in ALIASES.items() if name in formats)
        auto = [name for name in formats if name == "auto"]
        words = ", ".join((*auto, *aliases, *(name for name in formats if name != "auto")))
        raise ValueError(f"kv_cache_dtype must be one of {words}, not {kv_cache_dtype!r}")
    return resolved


def validate(op: "CacheWrite", arguments: Sequence[Any]) -> ValidCall:
    """Check all arguments of an op that writes caches; see `op.Op.validate`."""
    given = dict(zip(op.parameters, arguments, strict=True))
    scales = {name: given.pop(name) for name in op.scales}
    words = op.resolve_words({name: given.pop(name) for name in op.words})
    kv_cache_dtype = words.get("kv_cache_dtype", op.formats[0])
    rows, caches = ({name: given[name] for name in names} for names in (op.reads, op.writes))
    _check_tensors(given, op.reads[0])
    num_tokens = _check_slot_mapping(given[op.place])
    op.check_rows(num_tokens, *rows.values())
    _check_types(op, rows, caches, kv_cache_dtype)
    num_slots = op.check_caches(kv_cache_dtype, list(rows.values()), *caches.values())
    first = rows[op.reads[0]]
    if kv_cache_dtype != "auto":
        _check_scale_tensors(scales)
    if op.reads_scales(first.dtype, kv_cache_dtype):
        num_heads = first.shape[1] if op.has_head_scales and first.dim() > 2 else 1
        _check_scales(scales, op.reads[0], first.device, num_heads)
    else:
        scales = dict.fromkeys(scales)  # they are not read
    _check_memory({**given, **{name: scale for name, scale in scales.items() if scale is not None}})
    taken = {**given, **scales, **words}
    return ValidCall(op, tuple(taken[name] for name in op.parameters), num_tokens, num_slots, first.device)


def check_slot_range(slot_mapping: Tensor, num_slots: int) -> None:
    """Check that no slot is past the last; see `op.Op.check_slots`."""
    if slot_mapping.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError("check_slots=True waits for the GPU, which the capture of a CUDA graph forbids")
    largest = int(slot_mapping.max()) if slot_mapping.numel() else -1
    if largest >= num_slots:
        token = int(slot_mapping.argmax())
        raise ValueError(
            f"slot_mapping[{token}] is {largest}, past the last of the cache's {num_slots} slots"
        )


def check_flash_cache(name: str, cache: Tensor, num_heads: int, width: int, what: str) -> None:
    """Check one cache of FlashAttention's shape; `what` names its last dim.

    Raises:
        ValueError: It does not fit.
    """
    if cache.dim() != 4 or tuple(cache.shape[2:]) != (num_heads, width):
        raise ValueError(
            f"{name} must be [num_blocks, block_size, {num_heads}, {width}] (num_heads, {what}), "
            f"not {format_shape(cache)}"
        )
    if not has_strides(cache, (None, None, None, 1)):
        raise ValueError(f"{name} must have a contiguous last dim, not the strides {cache.stride()}")
    check_own_memory(name, cache)


def check_heads(key: Tensor, value: Tensor, num_tokens: int, equal_heads: bool) -> None:
    """Check rows of heads; see `CacheWrite.check_rows`."""
    for name, rows in (("key", key), ("value", value)):
        if rows.dim() != 3:
            raise ValueError(f"{name} must be [num_tokens, num_heads, head_size], not {format_shape(rows)}")
        check_count(name, rows, num_tokens)
        _, num_heads, head_size = rows.shape
        if not num_heads or not head_size:
            raise ValueError(f"{name} must have heads with elements, not {format_shape(rows)}")
        if not has_strides(rows, (None, head_size, 1)):
            raise ValueError(
                f"{name} must have adjacent heads of contiguous elements, not the strides {rows.stride()}"
            )
    if value.shape[1] != key.shape[1]:
        raise ValueError(f"value must have {key.shape[1]} heads as key has, not {value.shape[1]}")
    if equal_heads and value.shape[2] != key.shape[2]:
        raise ValueError(f"value must have heads of {key.shape[2]} elements as key has, not {value.shape[2]}")


def check_count(name: str, rows: Tensor, num_tokens: int) -> None:
    """Check that there is a row for each token.

    Raises:
        ValueError: There is not.
    """
    if rows.shape[0] < num_tokens:
        raise ValueError(
            f"{name} must have a row for each of the {num_tokens} tokens of slot_mapping, not {rows.shape[0]}"
        )


def check_own_memory(name: str, cache: Tensor) -> None:
    """Check that no two elements of the cache share memory.

    Raises:
        ValueError: Some do.
    """
    if not cache.numel():
        return
    reach = 0
    for stride, size in sorted(zip(cache.stride(), cache.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise ValueError(
                f"{name} must have memory of its own for each element, not the strides {cache.stride()}"
            )
        reach += (size - 1) * stride if size > 1 else 0


def _check_tensors(tensors: dict[str, Any], first: str) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
        _check_strided(name, tensor)
        _check_not_lazy(name, tensor)
    device = tensors[first].device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device} as {first} is, not on {tensor.device}")


def _check_strided(name: str, tensor: Tensor) -> None:
    layout = str(tensor.layout).removeprefix("torch.").removeprefix("_")
    # The default layout of torch.nested.nested_tensor is torch.strided, too.
    if tensor.is_nested:
        raise TypeError(f"{name} must be a strided tensor, not a nested one (its layout is {layout})")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a strided tensor, not one of the layout {layout}")


def _check_not_lazy(name: str, tensor: Tensor) -> None:
    for is_lazy, what in ((tensor.is_neg(), "negatives"), (tensor.is_conj(), "conjugates")):
        if is_lazy:
            raise ValueError(f"{name} must be the numbers that lie in its memory, not a view of their {what}")


def _check_memory(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.numel() and not tensor.data_ptr() and tensor.device.type != "meta":
            raise ValueError(f"{name} has no memory")


def _check_slot_mapping(slot_mapping: Tensor) -> int:
    if slot_mapping.dtype != torch.int64:
        raise TypeError(f"slot_mapping must be int64, not {format_dtype(slot_mapping.dtype)}")
    if slot_mapping.dim() != 1:
        raise ValueError(f"slot_mapping must be [num_tokens], not {format_shape(slot_mapping)}")
    if not slot_mapping.is_contiguous():
        raise ValueError("slot_mapping must be contiguous")
    return slot_mapping.shape[0]


def _check_types(
    op: "CacheWrite", rows: dict[str, Tensor], caches: dict[str, Tensor], kv_cache_dtype: str
) -> None:
    first, *others = rows
    source = rows[first].dtype
    kind, taken = format_dtype(source), [SOURCES[name] for name in op.sources]
    if source not in taken:
        words = ", ".join(map(format_dtype, taken))
        raise TypeError(f"{first} must be one of {words}, not {kind}")
    for name in others:
        if rows[name].dtype != source:
            raise TypeError(f"{name} must be {kind} as {first} is, not {format_dtype(rows[name].dtype)}")
    allowed = op.list_cache_types(source, kv_cache_dtype)
    if source.itemsize == 1 and kv_cache_dtype != "auto" and source not in allowed:
        raise TypeError(
            f"{first} is {kind}, which goes into an fp8 cache of its own kind alone, "
            f"not kv_cache_dtype={kv_cache_dtype}"
        )
    what = f" for kv_cache_dtype={kv_cache_dtype}" if "kv_cache_dtype" in op.words else ""
    for name, cache in caches.items():
        if cache.dtype not in allowed:
            words = " or ".join(map(format_dtype, allowed))
            raise TypeError(f"{name} must be {words}{what}, not {format_dtype(cache.dtype)}")


def _check_scales(scales: dict[str, Any], rows: str, device: torch.device, num_heads: int) -> None:
    """Check scales that are read; `rows` names what is on the device where they must be."""
    for name, scale in scales.items():
        if scale is None:
            raise TypeError(f"{name} must be a float32 tensor for an fp8 cache, not None")
    for name, scale in scales.items():
        _check_not_lazy(name, scale)
        if scale.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, not {format_dtype(scale.dtype)}")
        if scale.device != device:
            raise ValueError(f"{name} must be on {device} as {rows} is, not on {scale.device}")
        if tuple(scale.shape) not in ((), (1,), (num_heads,)):
            each = f" or [{num_heads}], one for each head" if num_heads > 1 else ""
            raise ValueError(f"{name} must have one element{each}, not {format_shape(scale)}")
        if not scale.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
    (first, one), *others = scales.items()
    for name, scale in others:
        if scale.shape != one.shape:
            raise ValueError(f"{name} must be {format_shape(one)} as {first} is, not {format_shape(scale)}")


def _check_scale_tensors(scales: dict[str, Any]) -> None:
    for name, scale in scales.items():
        if scale is None:
            continue
        if not isinstance(scale, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor or None, not {type(scale).__name__}")
        _check_strided(name, scale)
