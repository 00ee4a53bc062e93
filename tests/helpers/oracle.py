"""Compute the expected bytes of a cache by the slowest means: a Python loop over tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

import kvexp
from kvexp.impl import make
from kvexp.layout import Layout, Plane
from kvexp.op import Call, list_functions
from kvexp.op.quantize import quantize
from tests.helpers import compose

FLASH, DIFFKV, PAGED = "reshape_and_cache_flash", "reshape_and_cache_flash_diffkv", "reshape_and_cache"
DTYPES = {
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
WIDE = ("half", "bfloat16", "float")
"""The source types that are converted to fp8."""

FORMATS = {"auto": "auto", "fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
MANY_TOKENS = 256
SMALL_BYTES = 1 << 28
SCALE = 0.37
"""Neither a power of two nor its own reciprocal, so that a wrong division is noticed."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a cache."""

    num_blocks: int = 8
    block_size: int = 16
    num_heads: int = 2
    head_size: int = 64
    head_size_v: int = 64
    num_layers: int = 1


@dataclass
class Problem:
    """Tensors of one call on a cache whose bytes are random."""

    op: str
    key: Tensor
    value: Tensor
    storage: Tensor
    key_cache: Tensor
    value_cache: Tensor
    kv_cache: Tensor | None
    slot_mapping: Tensor
    kv_cache_dtype: str
    k_scale: Tensor | None
    v_scale: Tensor | None

    @property
    def caches(self) -> tuple[Tensor, ...]:
        """The caches as the op takes them."""
        return (self.kv_cache,) if self.op == DIFFKV else (self.key_cache, self.value_cache)

    @property
    def arguments(self) -> tuple[object, ...]:
        """The op's arguments, in order."""
        rows = (self.key, self.value, *self.caches, self.slot_mapping)
        return (*rows, self.kv_cache_dtype, self.k_scale, self.v_scale)

    def bind(self, impl: object) -> Call:
        """Bind the implementation's call to these tensors."""
        call: Call = getattr(impl, self.op)(*self.arguments)
        return call

    def expected(self) -> Tensor:
        """Return the storage's bytes after a correct call on its current bytes.

        For many tokens of a GPU the CPU computes them, whose steps take less time than launches.
        """
        few = len(self.slot_mapping) < MANY_TOKENS or self.storage.numel() > SMALL_BYTES
        device = self.storage.device if few else torch.device("cpu")
        after = self.storage.to(device, copy=True)
        for rows, plane, scale in (
            (self.key.to(device), self.key_cache, _to(self.k_scale, device)),
            (self.value.to(device), self.value_cache, _to(self.v_scale, device)),
        ):
            twin = torch.empty(0, dtype=plane.dtype, device=device).set_(
                after.view(plane.dtype).untyped_storage(),
                plane.storage_offset(),
                plane.shape,
                plane.stride(),
            )
            block_size = twin.shape[3] if self.op == PAGED else twin.shape[1]
            for token, slot in enumerate(self.slot_mapping.tolist()):
                if 0 <= slot < twin.shape[0] * block_size:
                    row = quantize(rows[token : token + 1], self.kv_cache_dtype, scale)[0].view(twin.dtype)
                    block, offset = slot // block_size, slot % block_size
                    if self.op == PAGED:
                        row_in_cache = twin[block, :, :, offset]
                        row_in_cache.copy_(row.view(row_in_cache.shape))
                    else:
                        twin[block, offset].copy_(row)
        return after.to(self.storage.device)


def _to(scale: Tensor | None, device: torch.device) -> Tensor | None:
    return None if scale is None else scale.to(device)


def problem(
    device: str,
    slots: Sequence[int],
    *,
    op: str = FLASH,
    layout: str | None = None,
    dtype: str = "bfloat16",
    kv_cache_dtype: str = "auto",
    scale: str = "per_tensor",
    key: Tensor | None = None,
    value: Tensor | None = None,
    **sizes: int,
) -> Problem:
    """Make a call that writes `slots`, with random rows unless given; further arguments are Sizes."""
    if "head_size" in sizes:
        sizes.setdefault("head_size_v", sizes["head_size"])
    of = Sizes(**sizes)
    source = DTYPES[dtype]
    item = source if kv_cache_dtype == "auto" else torch.uint8
    made: Layout = make(compose.choice("layout", layout or compose.layout_of(op)))
    planes = made.planes(of, item.itemsize, layer=of.num_layers // 2)
    generator = torch.Generator(device).manual_seed(len(slots) + of.num_heads * of.head_size)
    storage = _bytes(planes.items * item.itemsize, generator)
    shapes = [(len(slots), of.num_heads, size) for size in (of.head_size, of.head_size_v)]
    rows = [_rows(shape, source, generator) for shape in shapes]
    scales = _scales(scale, of.num_heads, device)

    # torch.compile takes caches that share memory when they are views of one tensor of their type.
    items = storage.view(item).detach()

    def view(plane: Plane) -> Tensor:
        return items.as_strided(plane.shape, plane.strides, plane.offset)

    return Problem(
        op=op,
        key=rows[0] if key is None else key,
        value=rows[1] if value is None else value,
        storage=storage,
        key_cache=view(planes.key),
        value_cache=view(planes.value),
        kv_cache=planes.packed and view(planes.packed),
        slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
        kv_cache_dtype=FORMATS[kv_cache_dtype],
        k_scale=scales,
        v_scale=scales * 3,
    )


def _bytes(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (count,), dtype=torch.uint8, device=generator.device, generator=generator)


def _rows(shape: tuple[int, ...], source: torch.dtype, generator: torch.Generator) -> Tensor:
    if source.itemsize == 1:
        return _bytes(shape[0] * shape[1] * shape[2], generator).view(source).view(shape)
    return torch.randn(shape, device=generator.device, generator=generator).to(source)


def _scales(scale: str, num_heads: int, device: str) -> Tensor:
    if scale == "per_tensor":
        return torch.tensor(SCALE, device=device)
    return SCALE * (1 + torch.arange(num_heads, device=device, dtype=torch.float32))


def with_blocks_apart(posed: Problem, key: int, value: int) -> Problem:
    """Return the call on head-major caches with strides of so many blocks between blocks.

    Where both are 2, K's and V's blocks alternate; otherwise V's follow K's.
    """
    items = posed.key_cache[0].numel()
    num_blocks = posed.key_cache.shape[0]
    first_value = items if key == value == 2 else key * num_blocks * items
    generator = torch.Generator(posed.storage.device).manual_seed(key + value)
    storage = _bytes((key + value) * num_blocks * items * posed.key_cache.itemsize, generator)
    flat = storage.view(posed.key_cache.dtype)

    def view(cache: Tensor, apart: int, first: int) -> Tensor:
        return flat.as_strided(cache.shape, (apart * items, *cache.stride()[1:]), first)

    return replace(
        posed,
        storage=storage,
        key_cache=view(posed.key_cache, key, 0),
        value_cache=view(posed.value_cache, value, first_value),
    )


class Library:
    """The library's functions as an implementation; each call is validated."""

    def __init__(self, impl: str) -> None:
        for op in list_functions():
            setattr(self, op, partial(partial, getattr(kvexp, op), impl=impl))


@cache
def implementation(name: str, device: str) -> object:
    """Return the implementation of that name in conf/impl, or for `library/NAME` the library's."""
    library, slash, impl = name.partition("/")
    if slash:
        assert library == "library"
        return Library(impl)
    made: object = make(compose.choice("impl", name), device=device)
    return made


def assert_writes(name: str, posed: Problem) -> None:
    """Run the call and compare every byte of the storage with the loop's."""
    expected = posed.expected()
    posed.bind(implementation(name, str(posed.key.device)))()
    assert_same(posed.storage, expected)


def bind(name: str, op: str, arguments: Sequence[object], device: torch.device) -> Call:
    """Bind an implementation's call of an op; see `implementation`."""
    call: Call = getattr(implementation(name, str(device)), op)(*arguments)
    return call


def assert_same(storage: Tensor, expected: Tensor) -> None:
    """Compare every byte."""
    differs = (storage != expected).nonzero()
    assert differs.numel() == 0, f"{differs.numel()} bytes differ, the first at {int(differs[0])}"


def shuffled(count: int, num_slots: int, seed: int = 0) -> list[int]:
    """Return `count` different slots in random order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_slots, generator=generator)[:count].tolist()


def moved(tensor: Tensor, items: int) -> Tensor:
    """Return the same numbers and strides, so many items past an aligned address."""
    size = tensor.untyped_storage().nbytes() // tensor.itemsize
    flat = torch.empty(items + size + 64, dtype=tensor.dtype, device=tensor.device)
    start = items + -flat.data_ptr() % 64 // tensor.itemsize
    return flat.as_strided(tensor.shape, tensor.stride(), start).copy_(tensor)


def without_scales(posed: Problem) -> Problem:
    """Return the call with None for the scales, which it does not read."""
    return replace(posed, k_scale=None, v_scale=None)
