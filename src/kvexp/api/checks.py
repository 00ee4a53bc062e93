"""Check the arguments of a call; each error names the argument, what it is and what it can be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvexp.api import cache_checks
from kvexp.api.cache_checks import format_dtype, format_shape, has_strides
from kvexp.op.quantize import FORMATS

SOURCES = (torch.float16, torch.bfloat16, torch.float32, *(target.dtype for target in FORMATS.values()))
ALIASES = {"fp8": "fp8_e4m3"}


@dataclass(frozen=True)
class ValidCall:
    """A call whose arguments are valid.

    Attributes:
        arguments: The op's, with the format's alias resolved.
        num_tokens: Length of `slot_mapping`.
        num_slots: Slots of the cache.
        device: The device of all tensors.
    """

    arguments: tuple[Any, ...]
    num_tokens: int
    num_slots: int
    device: torch.device

    @property
    def slot_mapping(self) -> Tensor:
        """The argument `slot_mapping`."""
        found: Tensor = self.arguments[-4]
        return found

    @property
    def num_caches(self) -> int:
        """Number of caches among the arguments."""
        return len(self.arguments) - 6

    @property
    def addresses(self) -> tuple[int, ...]:
        """Addresses of the tensors, in the op's order; 0 for None."""
        tensors = (*self.arguments[:-3], *self.arguments[-2:])
        return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


def resolve_format(kv_cache_dtype: Any) -> str:
    """Return `auto`, `fp8_e4m3` or `fp8_e5m2`.

    Raises:
        TypeError: The argument is not a str.
        ValueError: It is another word.
    """
    if not isinstance(kv_cache_dtype, str):
        raise TypeError(f"kv_cache_dtype must be a str, not {type(kv_cache_dtype).__name__}")
    resolved = ALIASES.get(kv_cache_dtype, kv_cache_dtype)
    if resolved != "auto" and resolved not in FORMATS:
        words = ", ".join(("auto", *ALIASES, *FORMATS))
        raise ValueError(f"kv_cache_dtype must be one of {words}, not {kv_cache_dtype!r}")
    return resolved


def validate(op: str, arguments: Sequence[Any]) -> ValidCall:
    """Check all arguments and return the call.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument's shape, strides or device is wrong.
    """
    key, value, *caches, slot_mapping, kv_cache_dtype, k_scale, v_scale = arguments
    resolved = resolve_format(kv_cache_dtype)
    names = ("kv_cache",) if op.endswith("diffkv") else ("key_cache", "value_cache")
    tensors = {
        "key": key,
        "value": value,
        **dict(zip(names, caches, strict=True)),
        "slot_mapping": slot_mapping,
    }
    _check_tensors(tensors, key)
    num_tokens = _check_slot_mapping(slot_mapping)
    _check_rows(key, value, num_tokens)
    _check_types(key, value, dict(zip(names, caches, strict=True)), resolved)
    if op != "reshape_and_cache_flash_diffkv" and value.shape[2] != key.shape[2]:
        raise ValueError(f"value must have heads of {key.shape[2]} elements as key has, not {value.shape[2]}")
    num_slots = cache_checks.CACHES[op](key, value, *caches)
    if resolved != "auto":
        _check_scale_tensors(k_scale=k_scale, v_scale=v_scale)
    if resolved != "auto" and key.itemsize > 1:
        _check_scales(key, k_scale, v_scale)
        tensors |= {"k_scale": k_scale, "v_scale": v_scale}
    else:
        k_scale = v_scale = None  # nothing is converted, so they are not read
    _check_memory(tensors)
    return ValidCall(
        (key, value, *caches, slot_mapping, resolved, k_scale, v_scale), num_tokens, num_slots, key.device
    )


def check_slot_range(call: ValidCall) -> None:
    """Check that no slot is past the last; wait for the device.

    Raises:
        ValueError: A slot is, or a CUDA graph is being captured, which cannot wait.
    """
    if call.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ValueError("check_slots=True waits for the GPU, which the capture of a CUDA graph forbids")
    largest = int(call.slot_mapping.max()) if call.num_tokens else -1
    if largest >= call.num_slots:
        token = int(call.slot_mapping.argmax())
        raise ValueError(
            f"slot_mapping[{token}] is {largest}, past the last of the cache's {call.num_slots} slots"
        )


def _check_tensors(tensors: dict[str, Any], key: Any) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
        _check_strided(name, tensor)
        _check_not_lazy(name, tensor)
    for name, tensor in tensors.items():
        if tensor.device != key.device:
            raise ValueError(f"{name} must be on {key.device} as key is, not on {tensor.device}")


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


def _check_rows(key: Tensor, value: Tensor, num_tokens: int) -> None:
    for name, rows in (("key", key), ("value", value)):
        if rows.dim() != 3:
            raise ValueError(f"{name} must be [num_tokens, num_heads, head_size], not {format_shape(rows)}")
        if rows.shape[0] < num_tokens:
            raise ValueError(
                f"{name} must have a row for each of the {num_tokens} tokens of slot_mapping, "
                f"not {rows.shape[0]}"
            )
        _, num_heads, head_size = rows.shape
        if not num_heads or not head_size:
            raise ValueError(f"{name} must have heads with elements, not {format_shape(rows)}")
        if not has_strides(rows, (None, head_size, 1)):
            raise ValueError(
                f"{name} must have adjacent heads of contiguous elements, not the strides {rows.stride()}"
            )
    if value.shape[1] != key.shape[1]:
        raise ValueError(f"value must have {key.shape[1]} heads as key has, not {value.shape[1]}")


def _check_types(key: Tensor, value: Tensor, caches: dict[str, Tensor], kv_cache_dtype: str) -> None:
    if key.dtype not in SOURCES:
        raise TypeError(
            f"key must be one of {', '.join(map(format_dtype, SOURCES))}, not {format_dtype(key.dtype)}"
        )
    if value.dtype != key.dtype:
        raise TypeError(f"value must be {format_dtype(key.dtype)} as key is, not {format_dtype(value.dtype)}")
    allowed: tuple[torch.dtype, ...] = (key.dtype,)
    if kv_cache_dtype != "auto":
        allowed = (torch.uint8, FORMATS[kv_cache_dtype].dtype)
    if key.itemsize == 1 and key.dtype not in allowed[1:]:
        raise TypeError(
            f"key is {format_dtype(key.dtype)}, which goes into an fp8 cache of its own kind alone, "
            f"not kv_cache_dtype={kv_cache_dtype}"
        )
    for name, cache in caches.items():
        if cache.dtype not in allowed:
            words = " or ".join(map(format_dtype, allowed))
            raise TypeError(
                f"{name} must be {words} for kv_cache_dtype={kv_cache_dtype}, not {format_dtype(cache.dtype)}"
            )


def _check_scales(key: Tensor, k_scale: Any, v_scale: Any) -> None:
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is None:
            raise TypeError(f"{name} must be a float32 tensor for an fp8 cache, not None")
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        _check_not_lazy(name, scale)
        if scale.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, not {format_dtype(scale.dtype)}")
        if scale.device != key.device:
            raise ValueError(f"{name} must be on {key.device} as key is, not on {scale.device}")
        if tuple(scale.shape) not in ((), (1,), (key.shape[1],)):
            raise ValueError(
                f"{name} must have one element or [{key.shape[1]}], one for each head, "
                f"not {format_shape(scale)}"
            )
        if not scale.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
    if k_scale.shape != v_scale.shape:
        raise ValueError(
            f"v_scale must be {format_shape(k_scale)} as k_scale is, not {format_shape(v_scale)}"
        )


def _check_scale_tensors(**scales: Any) -> None:
    for name, scale in scales.items():
        if scale is None:
            continue
        if not isinstance(scale, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor or None, not {type(scale).__name__}")
        _check_strided(name, scale)
