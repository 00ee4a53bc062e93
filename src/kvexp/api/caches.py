"""Allocate caches in any layout, and select a layout."""

import operator
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from kvexp import op as ops
from kvexp.errors import ConfigError
from kvexp.layout import Layout, Plane, load_layouts, selection
from kvexp.layout.selection import Selection
from kvexp.op.arguments import format_dtype, resolve_format
from kvexp.op.quantize import SOURCES


class KVCache(NamedTuple):
    """The caches of one layer.

    Attributes:
        key_cache: K's plane, in the shape that the ops take.
        value_cache: V's plane.
        kv_cache: Both as one tensor, K then V in the last dim, or for `indexer` in each block; None where
            they are separate.
    """

    key_cache: Tensor
    value_cache: Tensor
    kv_cache: Tensor | None


@dataclass(frozen=True)
class _Sizes:
    num_blocks: int
    block_size: int
    num_heads: int
    head_size: int
    head_size_v: int
    num_layers: int


def stride_order(layout: str) -> tuple[int, ...]:
    """Return the dims of a cache's logical shape in the order of its memory, the outermost first.

    The logical shape is `[num_blocks, 2, block_size, num_heads, head_size]`, or for packed layouts
    `[num_blocks, block_size, num_heads, head_size + head_size_v]`. It is that of one layer, so the order of
    `BHLNC` is that of `HND_packed`.

    Raises:
        ValueError: There is no such layout, or it has no such shape.
    """
    order = load_layout(layout).stride_order
    if order is None:
        raise ValueError(
            f"layout {layout!r} holds K and V in tensors of different shapes: it has no stride order"
        )
    return order


def select_layout(
    op: str = "reshape_and_cache_flash",
    wish: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Selection:
    """Return the layout that a serving engine would take, and why.

    In order: `KVEXP_KV_CACHE_LAYOUT`, `VLLM_KV_CACHE_LAYOUT`, `FLASHINFER_KV_CACHE_LAYOUT`, the connector's
    wish, NHD.

    Args:
        op: The op that will write the cache.
        wish: The layout that the KV-transfer connector asks for, if any.
        environ: Environment variables; by default the process's.

    Raises:
        ValueError: A variable names an unknown layout.
    """
    try:
        variables = os.environ if environ is None else environ
        if op not in ops.list_functions():
            raise ValueError(f"op must be one of {', '.join(ops.list_functions())}, not {op!r}")
        if wish is not None:
            load_layout(wish)
        return selection.select(op, variables, "the connector", wish, ops.load(op).twins)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def allocate(
    layout: str,
    *,
    num_blocks: SupportsIndex,
    block_size: SupportsIndex,
    num_heads: SupportsIndex,
    head_size: SupportsIndex,
    head_size_v: SupportsIndex | None = None,
    dtype: torch.dtype = torch.bfloat16,
    kv_cache_dtype: str = "auto",
    device: torch.device | str = "cuda",
) -> KVCache:
    """Return a layer's cache in the layout, all zeros; see `allocate_layers`."""
    (cache,) = allocate_layers(
        1,
        layout,
        num_blocks=num_blocks,
        block_size=block_size,
        num_heads=num_heads,
        head_size=head_size,
        head_size_v=head_size_v,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        device=device,
    )
    return cache


def allocate_layers(
    num_layers: SupportsIndex,
    layout: str,
    *,
    num_blocks: SupportsIndex,
    block_size: SupportsIndex,
    num_heads: SupportsIndex,
    head_size: SupportsIndex,
    head_size_v: SupportsIndex | None = None,
    dtype: torch.dtype = torch.bfloat16,
    kv_cache_dtype: str = "auto",
    device: torch.device | str = "cuda",
) -> list[KVCache]:
    """Return the caches of several layers, all zeros, in one allocation.

    The layers share each block; in `LHBNC` and `head_major` each layer has blocks of its own.

    Args:
        num_layers: Number of layers.
        layout: `NHD`, `HND`, `NHD_packed`, `HND_packed`, `BHLNC`, `LHBNC`, `head_major`, `mla`, or `indexer`
            (with head_size 128 and head_size_v 4, the bytes of a scale, in an fp8 cache).
        num_blocks: Number of blocks.
        block_size: Slots of a block.
        num_heads: KV heads.
        head_size: Elements of a key head.
        head_size_v: Elements of a value head; by default `head_size`.
        dtype: Type of the items for `auto`; fp8 caches are uint8.
        kv_cache_dtype: `auto`, `fp8`, `fp8_e4m3` or `fp8_e5m2`.
        device: The caches' device.

    Raises:
        ValueError: A size is not positive, a name is unknown, or there is no such device.
    """
    made = load_layout(layout)
    sizes = _sizes(
        num_blocks=num_blocks,
        block_size=block_size,
        num_heads=num_heads,
        head_size=head_size,
        head_size_v=head_size if head_size_v is None else head_size_v,
        num_layers=num_layers,
        has_values=made.has_heads,
    )
    if dtype not in SOURCES.values():
        words = ", ".join(map(format_dtype, SOURCES.values()))
        raise TypeError(f"dtype must be one of {words}, not {dtype!r}")
    item = dtype if resolve_format(kv_cache_dtype) == "auto" else torch.uint8
    multiple = made.head_multiple(item.itemsize)
    if sizes.head_size % multiple:
        raise ValueError(
            f"head_size {sizes.head_size} is not a multiple of {multiple}, the items of 16 bytes"
        )
    if sizes.num_heads != 1 and not made.has_heads:
        raise ValueError(
            f"num_heads must be 1 in layout {layout!r}, which has no heads, not {sizes.num_heads}"
        )
    _check_device(device)
    storage = torch.zeros(made.planes(sizes, item.itemsize).items, dtype=item, device=device)
    return [_cache(storage, made, sizes, layer) for layer in range(sizes.num_layers)]


def _sizes(*, has_values: bool, **given: SupportsIndex) -> _Sizes:
    """Return the sizes as Python ints; without heads `head_size_v` may be 0.

    Raises:
        ValueError: A size is not a positive whole number.
    """
    may_be_0 = () if has_values else ("head_size_v",)
    return _Sizes(**{name: _size(name, size, name in may_be_0) for name, size in given.items()})


def _size(name: str, given: SupportsIndex, may_be_0: bool) -> int:
    # To Python a bool is an int, and reading a tensor would wait for its device.
    is_number = hasattr(given, "__index__") and not isinstance(given, bool | Tensor)
    with suppress(TypeError):  # arrays of several numbers
        if is_number and (size := operator.index(given)) > -may_be_0:
            return size
    words = "a whole number from 0 on" if may_be_0 else "a positive whole number"
    raise ValueError(f"{name} must be {words}, not {given!r}")


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # whatever a build without that device raises
        why = str(error).partition("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({why}); 'cpu' can") from error


def _cache(storage: Tensor, layout: Layout, sizes: _Sizes, layer: int) -> KVCache:
    planes = layout.planes(sizes, storage.itemsize, layer)

    def view(plane: Plane) -> Tensor:
        return storage.as_strided(plane.shape, plane.strides, plane.offset)

    packed = view(planes.packed) if planes.packed else None
    return KVCache(view(planes.key), view(planes.value), packed)


def load_layout(name: str) -> Layout:
    """Return the layout of that name.

    Raises:
        ValueError: There is none.
    """
    layouts = load_layouts()
    if name not in layouts:
        raise ValueError(f"layout {name!r} is not one of {', '.join(layouts)}")
    return layouts[name]
