"""The law by the slowest means: a Python loop over tokens says which bytes the cache must hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kvexp.case import Case
from kvexp.impl import make
from kvexp.layout import Layout
from kvexp.op import Call
from kvexp.quantize import quantize
from tests import composed

DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32}
FORMATS = {"auto": "auto", "fp8": "fp8_e4m3"}
SCALE = 0.37
"""Neither a power of two nor its own reciprocal: a wrong division shows."""


@dataclass
class Problem:
    """Tensors of one call on a cache whose bytes are random."""

    key: Tensor
    value: Tensor
    storage: Tensor
    key_cache: Tensor
    value_cache: Tensor
    slot_mapping: Tensor
    kv_cache_dtype: str
    k_scale: Tensor
    v_scale: Tensor

    def bind(self, impl: object) -> Call:
        """The implementation's call for these tensors."""
        call: Call = impl.reshape_and_cache_flash(  # type: ignore[attr-defined]  # an op is a method by its name
            self.key,
            self.value,
            self.key_cache,
            self.value_cache,
            self.slot_mapping,
            self.kv_cache_dtype,
            self.k_scale,
            self.v_scale,
        )
        return call

    def expected(self) -> Tensor:
        """The storage's bytes after a right call on the bytes that it holds now."""
        after = self.storage.clone()
        for rows, plane, scale in (
            (self.key, self.key_cache, self.k_scale),
            (self.value, self.value_cache, self.v_scale),
        ):
            twin = torch.empty(0, dtype=plane.dtype, device=plane.device).set_(
                after.view(plane.dtype).untyped_storage(),
                plane.storage_offset(),
                plane.shape,
                plane.stride(),
            )
            num_blocks, block_size = plane.shape[:2]
            for token, slot in enumerate(self.slot_mapping.tolist()):
                if 0 <= slot < num_blocks * block_size:
                    row = quantize(rows[token : token + 1], self.kv_cache_dtype, scale)[0]
                    twin.view(torch.uint8)[slot // block_size, slot % block_size] = row
        return after


def problem(
    device: str,
    slots: Sequence[int],
    *,
    layout: str = "NHD",
    dtype: str = "bfloat16",
    kv_cache_dtype: str = "auto",
    num_heads: int = 2,
    head_size: int = 64,
    block_size: int = 16,
    num_blocks: int = 8,
    key: Tensor | None = None,
    value: Tensor | None = None,
) -> Problem:
    """A call that writes `slots`, with random rows unless they are given."""
    source = DTYPES[dtype]
    case = Case(
        op="reshape_and_cache_flash", impl="", impl_options="{}", layout=layout, dtype=dtype,
        kv_cache_dtype=FORMATS[kv_cache_dtype], mode="no_graph", timer="none", timer_options="{}",
        device=device, num_tokens=len(slots), num_heads=num_heads, head_size=head_size,
        head_size_v=head_size, block_size=block_size, num_blocks=num_blocks, slots="random", seed=0,
    )  # fmt: skip
    item = source if kv_cache_dtype == "auto" else torch.uint8
    made: Layout = make(composed.choice("layout", layout))
    planes = made.planes(case, item.itemsize)
    generator = torch.Generator(device).manual_seed(len(slots) + num_heads * head_size)
    size = planes.items * item.itemsize
    storage = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device, generator=generator)
    views = [storage.view(item).as_strided(p.shape, p.strides, p.offset) for p in (planes.key, planes.value)]
    shape = (len(slots), num_heads, head_size)
    rows = [torch.randn(shape, device=device, generator=generator).to(source) for _ in range(2)]
    return Problem(
        key=rows[0] if key is None else key,
        value=rows[1] if value is None else value,
        storage=storage,
        key_cache=views[0],
        value_cache=views[1],
        slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
        kv_cache_dtype=FORMATS[kv_cache_dtype],
        k_scale=torch.tensor(SCALE, device=device),
        v_scale=torch.tensor(SCALE * 3, device=device),
    )


@cache
def implementation(name: str, device: str) -> object:
    """The implementation that conf/impl names so."""
    made: object = make(composed.choice("impl", name), device=device)
    return made


def assert_writes(name: str, posed: Problem) -> None:
    """Runs the call and holds every byte of the storage against the loop's."""
    expected = posed.expected()
    posed.bind(implementation(name, str(posed.key.device)))()
    differs = (posed.storage != expected).nonzero()
    assert differs.numel() == 0, f"{differs.numel()} bytes differ, the first at {int(differs[0])}"


def shuffled(count: int, num_slots: int, seed: int = 0) -> list[int]:
    """`count` different slots in random order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_slots, generator=generator)[:count].tolist()
