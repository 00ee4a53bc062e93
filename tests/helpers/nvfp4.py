"""Calls of reshape_and_cache_flash_nvfp4, the bytes that they must leave, and its contract as tests.

The law is numpy's and `fp8_reference`'s: nothing here converts by torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvexp.op import Call
from tests.helpers import fp8_reference, oracle

NVFP4_OP = "reshape_and_cache_flash_nvfp4"
LAYOUTS, DTYPES = ("NHD", "HND"), ("half", "bfloat16")
TILE = 16
SCALES = (0.37, 0.013)
"""Of K and of V; no powers of two, so that a wrong division is noticed."""
INVALID_SCALES = (0.0, -1.0, float("inf"), float("nan"), -0.0, -float("inf"))


@dataclass
class Problem:
    """The tensors of one call, on a cache of random bytes in a larger storage."""

    key: Tensor
    value: Tensor
    kv_cache: Tensor
    slot_mapping: Tensor
    k_scale: Tensor
    v_scale: Tensor
    layout: str
    storage: Tensor
    block_size: int

    @property
    def arguments(self) -> tuple[object, ...]:
        """The op's arguments, in order."""
        scales = self.k_scale, self.v_scale
        return (self.key, self.value, self.kv_cache, self.slot_mapping, *scales, self.layout)

    def expected(self) -> Tensor:
        """Return the storage's bytes after a right call on its current bytes."""
        after = self.storage.cpu().clone().numpy()
        begin = self.kv_cache.data_ptr() - self.storage.data_ptr()
        tokens, num_heads = len(self.slot_mapping), self.key.shape[1]
        if not tokens:
            return self.storage.clone()
        for rows, scale in ((self.key, float(self.k_scale)), (self.value, float(self.v_scale))):
            is_valid = 0 < scale < float("inf")
            for data in quantize(rows[:tokens].cpu(), scale if is_valid else 1.0):
                width = data.shape[-1]
                for token, slot in enumerate(self.slot_mapping.tolist()):
                    block, offset = divmod(slot, self.block_size)
                    if not (is_valid and 0 <= block < len(self.kv_cache)):
                        continue
                    for head in range(num_heads):
                        by_token = offset * num_heads + head
                        row = by_token if self.layout == "NHD" else head * self.block_size + offset
                        at = begin + block * self.kv_cache.stride(0) + row * width
                        after[at : at + width] = data[token, head]
                begin += num_heads * self.block_size * width
        return torch.from_numpy(after).to(self.storage.device)


def quantize(rows: Tensor, scale: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the bytes of items and of scales that heads, `[..., head_size]`, become."""
    signs = rows.view(torch.int16).numpy() < 0
    numbers = rows.float().numpy()
    tiles = np.abs(numbers.reshape(-1, TILE))
    with np.errstate(all="ignore"):
        amax = np.where(np.isnan(tiles), np.float32(0), tiles).max(1)
        quotient = np.where(np.isinf(amax), amax, amax / (np.float32(6) * np.float32(scale)))
        scales = fp8_reference.codes("fp8_e4m3", quotient)
        finite = np.array(fp8_reference.values("fp8_e4m3"), np.float32)
        tiles = tiles / (finite[scales] * np.float32(scale))[:, None]
    codes = np.where(np.isnan(tiles) | (scales == 0)[:, None], 0, fp8_reference.codes("e2m1", tiles))
    items = codes.reshape(rows.shape) | np.where(signs, 8, 0)
    heads = rows.shape[:-1]
    packed = (items[..., ::2] | items[..., 1::2] << 4).astype(np.uint8)
    return packed, scales.reshape(*heads, -1)


def problem(
    device: str,
    slots: Sequence[int],
    *,
    layout: str = "NHD",
    dtype: str = "bfloat16",
    sizes: tuple[int, int] = (2, 64),
    blocks: tuple[int, int] = (8, 16),
    gaps: tuple[int, int, int] = (0, 0, 0),
    begins: tuple[int, int, int] = (0, 0, 0),
    extra_rows: int = 0,
    scales: tuple[float, float] = SCALES,
    key: Tensor | None = None,
    value: Tensor | None = None,
    seed: int = 0,
) -> Problem:
    """Make a call that writes the slots.

    Args:
        device: The tensors'.
        slots: The slot mapping.
        layout: Of a page.
        dtype: Of key and value.
        sizes: Heads and their elements.
        blocks: Blocks, and slots of one.
        gaps: Items between two rows of key and of value, and bytes between two pages.
        begins: Items before key and value, and bytes before the cache, in their memory.
        extra_rows: Rows behind those of the tokens.
        scales: Of key and of value.
        key: Rows in place of random ones; so value.
        value: See key.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    count, (num_heads, head_size) = len(slots) + extra_rows, sizes
    rows = []
    for gap, begin, given in zip(gaps, begins, (key, value), strict=False):
        step = num_heads * head_size + gap
        numbers = torch.randn(begin + (count + 1) * step, generator=generator)
        own = numbers.to(oracle.DTYPES[dtype]).to(device)
        own = own.as_strided((count, num_heads, head_size), (step, head_size, 1), begin)
        rows.append(own if given is None else given)
    page_bytes = blocks[1] * num_heads * head_size * 9 // 8
    step = page_bytes + gaps[2]
    count_bytes = begins[2] + blocks[0] * step + 8
    storage = torch.randint(0, 256, (count_bytes,), dtype=torch.uint8, generator=generator).to(device)
    cache = storage.as_strided((blocks[0], page_bytes), (step, 1), begins[2])
    mapping = torch.tensor(slots, dtype=torch.int64, device=device)
    both = (torch.tensor(scale, device=device) for scale in scales)
    return Problem(*rows, cache, mapping, *both, layout, storage, blocks[1])


def bind(impl: str, posed: Problem) -> Call:
    """Bind the call of an implementation; see `oracle.implementation`."""
    return oracle.bind(impl, NVFP4_OP, posed.arguments, posed.key.device)


def assert_writes(impl: str, posed: Problem) -> None:
    """Run the call and compare every byte of the storage."""
    expected = posed.expected()
    bind(impl, posed)()
    oracle.assert_same(posed.storage, expected)


def special_rows(dtype: str, device: str, scale: float) -> Tensor:
    """Return rows of one head of 128 whose tiles hold what a kernel may get wrong, in one sign and the other.

    They are zeros, -0, amax at each number of e4m3 and each tie between two and a step beside them, items at
    the ties of e2m1 and a step beside them, subnormals, NaN, infinities, and the type's ends.
    """
    source = oracle.DTYPES[dtype]
    info = torch.finfo(source)
    base = torch.linspace(-1, 1, TILE)
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    finite = torch.tensor([float(number) for number in fp8_reference.values("fp8_e4m3")])
    edges = torch.cat([finite, (finite[1:] + finite[:-1]) / 2, torch.tensor([465.0, 600.0, 2e4])])
    tiles = [torch.zeros(TILE), -torch.zeros(TILE), base * info.tiny, base * info.max, base * info.tiny / 2]
    tiles += [base * float(edge) * 6 * scale for edge in edges]
    for number in finite[1::5]:
        # The last middle is amax: the others are ties where no operation rounds.
        halves = torch.cat([middles, middles.flip(0)]) * number * scale
        halves = halves.to(source)
        to = [torch.full((TILE,), end, dtype=source) for end in (0.0, torch.inf)]
        beside = [torch.nextafter(halves, end) for end in to]
        tiles += [halves.float()] + [torch.where(halves == halves[7], halves, one).float() for one in beside]
    one = torch.ones(TILE)
    for number in (torch.nan, torch.inf, -torch.inf, info.tiny / 2):
        with_one, all_of_it = base.clone(), one * number
        with_one[7] = number
        tiles += [with_one, all_of_it]
    both = base.clone()
    both[[3, 10]] = torch.tensor([torch.nan, torch.inf])
    found = torch.stack([*tiles, both])
    found = torch.cat([found, -found, found.flip(1)])
    found = torch.cat([found, found[: -len(found) % 8]])
    return found.to(source).view(-1, 1, 8 * TILE).to(device)


class Nvfp4Contract:
    """The contract of reshape_and_cache_flash_nvfp4, for the fixtures `impl` and `device` of a module."""

    @pytest.mark.parametrize("scale", [0.37, 1 / 32, 2.0**-135, 2.0**-149, 2.0**70, 3e38])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_special_tiles_hold_the_law(self, impl, device, dtype, scale):
        key = special_rows(dtype, device, scale)
        posed = problem(
            device, oracle.shuffled(len(key), 512), dtype=dtype, sizes=(1, 128), blocks=(32, 16), key=key,
            value=key.flip(0), scales=(scale, SCALES[1]),
        )  # fmt: skip
        assert_writes(impl, posed)

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("sizes", [(1, 16), (3, 48), (5, 80), (8, 128), (2, 256)], ids=str)
    def test_every_size_holds_the_law(self, impl, device, sizes, layout):
        for dtype, blocks in zip(("bfloat16", "half", "bfloat16"), ((5, 16), (7, 1), (8, 3)), strict=True):
            slots = oracle.shuffled(4, blocks[0] * blocks[1])
            posed = problem(device, slots, dtype=dtype, layout=layout, sizes=sizes, blocks=blocks)
            assert_writes(impl, posed)

    @pytest.mark.parametrize(
        "slots",
        [
            [], [-1, 5, 6, 7], [5, 6, 7, -1], [-1] * 3, [3, -2, -(2**62), 4], [3, 128, 5, 135, 2**40],
            [127, 0], list(range(21, 90)), [16 * b + b % 16 for b in (5, 0, 7, 2)],
        ],
        ids=str,
    )  # fmt: skip
    def test_slots_outside_the_cache_write_nothing(self, impl, device, slots):
        for layout in LAYOUTS:
            assert_writes(impl, problem(device, slots, layout=layout, sizes=(2, 32), extra_rows=2))

    @pytest.mark.parametrize(
        ("gaps", "begins"),
        [
            ((0, 0, 4096), (0, 0, 0)), ((64, 512, 16), (0, 0, 0)), ((1, 3, 0), (0, 0, 0)),
            ((0, 0, 0), (1, 0, 0)), ((0, 0, 0), (0, 1, 1)), ((0, 0, 0), (4, 4, 4)),
            ((0, 0, 1), (2, 1, 8)), ((0, 0, 4), (0, 0, 4)), ((8, 8, 2), (0, 0, 2)),
        ],
        ids=str,
    )  # fmt: skip
    def test_strides_and_addresses_are_free(self, impl, device, gaps, begins):
        for dtype in DTYPES:
            posed = problem(device, oracle.shuffled(9, 128), dtype=dtype, gaps=gaps, begins=begins)
            assert_writes(impl, posed)

    @pytest.mark.parametrize("scale", INVALID_SCALES)
    def test_nothing_is_written_of_a_side_whose_scale_is_not_positive_and_finite(self, impl, device, scale):
        for scales in ((scale, 0.3), (0.3, scale)):
            assert_writes(impl, problem(device, [3, 1], scales=scales))
