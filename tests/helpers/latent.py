"""Calls of concat_and_cache_mla, the bytes that they must leave, and its contract as tests.

The law is numpy's and `fp8_reference`'s: nothing here converts by torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.op import FP8, Call
from tests.helpers import fp8_reference, oracle

MLA, DS_MLA = "concat_and_cache_mla", "fp8_ds_mla"
SCALE = 0.37
"""Neither a power of two nor its own reciprocal, so that a wrong division is noticed."""
TILES, TILE = 4, 128
KINDS = [
    *((dtype, "auto") for dtype in oracle.WIDE),
    *((dtype, dtype) for dtype in FP8),
    *((dtype, fp8) for dtype in oracle.WIDE for fp8 in FP8),
    *((dtype, DS_MLA) for dtype in ("half", "bfloat16")),
]
"""dtype and kv_cache_dtype."""
COPIED = KINDS[: len(oracle.WIDE) + len(FP8)]


@dataclass
class Problem:
    """The tensors of one call, on a cache of random bytes in a larger storage."""

    kv_c: Tensor
    k_pe: Tensor
    kv_cache: Tensor
    slot_mapping: Tensor
    kv_cache_dtype: str
    scale: Tensor | None
    storage: Tensor

    @property
    def converts(self) -> bool:
        """Say whether rows become 8-bit floats."""
        return self.kv_cache_dtype != "auto" and self.kv_c.itemsize > 1

    @property
    def arguments(self) -> tuple[object, ...]:
        """The op's arguments, in order."""
        rest = (self.slot_mapping, self.kv_cache_dtype, self.scale)
        return (self.kv_c, self.k_pe, self.kv_cache, *rest)

    def expected(self) -> Tensor:
        """Return the storage's bytes after a right call on its current bytes."""
        after = self.storage.cpu().clone().numpy()
        num_blocks, block_size, _ = self.kv_cache.shape
        item = self.kv_cache.itemsize
        begin = self.kv_cache.data_ptr() - self.storage.data_ptr()
        block_step, token_step = (stride * item for stride in self.kv_cache.stride()[:2])
        rows = self.rows()
        for token, slot in enumerate(self.slot_mapping.tolist()):
            if 0 <= slot < num_blocks * block_size:
                at = begin + slot // block_size * block_step + slot % block_size * token_step
                after[at : at + rows.shape[1]] = rows[token]
        return torch.from_numpy(after).to(self.storage.device)

    def rows(self) -> NDArray[np.uint8]:
        """Return the bytes that the slots of the tokens must hold."""
        tokens = len(self.slot_mapping)
        kv_c, k_pe = (rows[:tokens].cpu() for rows in (self.kv_c, self.k_pe))
        if not self.converts:
            return np.concatenate([_bytes_of(kv_c), _bytes_of(k_pe)], 1)
        if self.kv_cache_dtype == DS_MLA:
            rope = np.zeros((tokens, 2 * 64), np.uint8)
            rope[:, : 2 * k_pe.shape[1]] = _bytes_of(k_pe)
            return np.concatenate([_tile_bytes(kv_c.float().numpy()), rope], 1)
        with np.errstate(all="ignore"):
            divided = [rows.float().numpy() / np.float32(float(self.scale)) for rows in (kv_c, k_pe)]
        return fp8_reference.codes(self.kv_cache_dtype, np.concatenate(divided, 1))


def _bytes_of(rows: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = rows.contiguous().view(torch.uint8).numpy()
    return found


def _tile_bytes(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return 512 codes and four scales a row: the smallest powers of two not below max(amax / 448, 1e-4)."""
    tiles = rows.reshape(len(rows), TILES, TILE)
    amax = np.abs(np.where(np.isnan(tiles), 0, tiles)).max(2, initial=0)
    least = np.maximum(amax / np.float32(448), np.float32(1e-4))
    mantissa, exponent = np.frexp(least)  # mantissas from 0.5 on
    with np.errstate(all="ignore"):
        scales = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
        scales = np.where(np.isinf(least), least, scales).astype("<f4")
        codes = fp8_reference.codes("fp8_e4m3", tiles / scales[..., None])
    return np.concatenate([codes.reshape(rows.shape), scales.view(np.uint8)], 1)


def problem(
    device: str,
    slots: Sequence[int],
    *,
    dtype: str = "bfloat16",
    kv_cache_dtype: str = "auto",
    sizes: tuple[int, int] = (512, 64),
    blocks: tuple[int, int] = (8, 16),
    gaps: tuple[int, int, int, int] = (0, 0, 0, 0),
    begins: tuple[int, int, int] = (0, 0, 0),
    extra_rows: int = 0,
    kv_c: Tensor | None = None,
    k_pe: Tensor | None = None,
    seed: int = 0,
) -> Problem:
    """Make a call that writes the slots.

    Args:
        device: The tensors'.
        slots: The slot mapping.
        dtype: Of kv_c and k_pe.
        kv_cache_dtype: One of the formats.
        sizes: Elements of kv_c and of k_pe.
        blocks: Blocks, and slots of one.
        gaps: Items between two rows of kv_c, of k_pe, two slots and two blocks.
        begins: Items before kv_c, k_pe and the cache in their memory.
        extra_rows: Rows behind those of the tokens.
        kv_c: Rows in place of random ones; so k_pe.
        k_pe: See kv_c.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    source = oracle.DTYPES[dtype]
    item = source if kv_cache_dtype == "auto" else torch.uint8
    count = len(slots) + extra_rows
    rows = []
    for size, gap, begin, given in zip(sizes, gaps[:2], begins[:2], (kv_c, k_pe), strict=True):
        numbers = torch.randn(begin + (count + 1) * (size + gap), generator=generator)
        own = numbers.to(source).to(device).as_strided((count, size), (size + gap, 1), begin)
        rows.append(own if given is None else given)
    width = 656 if kv_cache_dtype == DS_MLA else sum(sizes)
    step = width + gaps[2]
    block_step = blocks[1] * step + gaps[3]
    items = begins[2] + blocks[0] * block_step + 8
    storage = torch.randint(0, 256, (items * item.itemsize,), dtype=torch.uint8, generator=generator).to(
        device
    )
    cache = storage.view(item).as_strided((*blocks, width), (block_step, step, 1), begins[2])
    scale = torch.tensor(SCALE, device=device)
    mapping = torch.tensor(slots, dtype=torch.int64, device=device)
    return Problem(*rows, cache, mapping, kv_cache_dtype, scale, storage)


def bind(impl: str, posed: Problem) -> Call:
    """Bind the call of an implementation; see `oracle.implementation`."""
    return oracle.bind(impl, MLA, posed.arguments, posed.kv_c.device)


def assert_writes(impl: str, posed: Problem) -> None:
    """Run the call and compare every byte of the storage; where only an interpreter converts, it refuses."""
    if impl == "triton" and posed.converts and posed.kv_c.device.type == "cpu":
        with pytest.raises(Unsupported, match="interpreter"):
            bind(impl, posed)
        return
    if not posed.converts or posed.kv_cache_dtype == DS_MLA:
        posed.scale = None
    expected = posed.expected()
    bind(impl, posed)()
    oracle.assert_same(posed.storage, expected)


def special_tiles(dtype: str, device: str, scale: float = SCALE) -> Tensor:
    """Return rows of 512 whose tiles hold what a kernel may get wrong, in one and in another sign.

    They are tiles of zeros, of -0, of the smallest scale and just above it, of amax at a power of two times
    448 and a step beside it, of ties, subnormals, NaN, infinities, and the type's ends.
    """
    source = oracle.DTYPES[dtype]
    info = torch.finfo(source)
    numbers = torch.tensor([float(number) for number in fp8_reference.values("fp8_e4m3")])
    middles = (numbers[1:] + numbers[:-1]) / 2  # ties, exact in both types
    base = torch.linspace(-1, 1, TILE)
    least = 448 * 2.0**-14
    beside = [
        torch.nextafter(torch.tensor(448.0, dtype=source), torch.tensor(to, dtype=source))
        for to in (0.0, 1e4)
    ]
    tiles = [
        torch.zeros(TILE),
        -torch.zeros(TILE),
        base * info.tiny,
        base * info.max,
        *(base * amax for amax in (least, 2 * least, 448 * 1e-4, 1e-6, 447.0, 448.0, 449.0, 896.0)),
        *(base * float(amax) for amax in beside),
        *(torch.cat([middles, middles[:2]])[:TILE] * 2.0**exponent for exponent in (-13, -5, 0, 3)),
        *(torch.cat([numbers, numbers[-1:]])[:TILE] * 2.0**exponent for exponent in (-13, 0)),
        torch.cat([middles, middles[:2]])[:TILE] * scale,
    ]
    one = torch.ones(TILE)
    for value in (torch.nan, torch.inf, -torch.inf, info.tiny / 2):
        with_one, all_of_it = base.clone(), one * value
        with_one[37] = value
        tiles += [with_one, all_of_it]
    both = base.clone()
    both[[3, 100]] = torch.tensor([torch.nan, torch.inf])
    found = torch.stack([*tiles, both, *(one * 0)[None]])
    found = torch.cat([found, -found, found.flip(1)])
    found = torch.cat([found, found[: -len(found) % TILES]])
    return found.to(source).view(-1, TILES * TILE).to(device)


class LatentContract:
    """The contract of concat_and_cache_mla, for the fixtures `impl` and `device` of a module."""

    @pytest.mark.parametrize("rope", [64, 0])
    @pytest.mark.parametrize(("dtype", "kv_cache_dtype"), KINDS)
    def test_special_tiles_hold_the_law(self, impl, device, dtype, kv_cache_dtype, rope):
        if oracle.DTYPES[dtype].itemsize == 1:
            kv_c = (
                torch.arange(256, dtype=torch.uint8)
                .repeat(8)
                .view(oracle.DTYPES[dtype])
                .view(4, 512)
                .to(device)
            )
        else:
            kv_c = special_tiles(dtype, device)
        count = len(kv_c)
        k_pe = kv_c.view(torch.uint8).flip(0).view(kv_c.dtype)[:, 100 : 100 + rope]
        posed = problem(
            device, oracle.shuffled(count, 128), dtype=dtype, kv_cache_dtype=kv_cache_dtype,
            sizes=(512, rope), kv_c=kv_c, k_pe=k_pe,
        )  # fmt: skip
        assert_writes(impl, posed)

    @pytest.mark.parametrize("kv_cache_dtype", ["auto", *FP8])
    @pytest.mark.parametrize(
        "sizes", [(256, 64), (512, 0), (1, 1), (7, 3), (100, 33), (33, 100), (640, 8)], ids=str
    )
    def test_every_size_holds_the_law(self, impl, device, sizes, kv_cache_dtype):
        for dtype in ("bfloat16", "float"):
            for blocks in ((5, 64), (7, 1), (8, 3)):
                slots = oracle.shuffled(6, blocks[0] * blocks[1])
                posed = problem(
                    device, slots, dtype=dtype, kv_cache_dtype=kv_cache_dtype, sizes=sizes, blocks=blocks
                )
                assert_writes(impl, posed)

    @pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e5m2", DS_MLA])
    @pytest.mark.parametrize(
        "slots",
        [
            [], [-1, 5, 6, 7], [5, 6, 7, -1], [-1] * 3, [3, -2, -(2**62), 4], [3, 128, 5, 135, 2**40],
            [127, 0], list(range(21, 90)), [16 * b + b % 16 for b in (5, 0, 7, 2)],
        ],
        ids=str,
    )  # fmt: skip
    def test_slots_outside_the_cache_write_nothing(self, impl, device, slots, kv_cache_dtype):
        assert_writes(impl, problem(device, slots, kv_cache_dtype=kv_cache_dtype, extra_rows=2))

    @pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e4m3", DS_MLA])
    @pytest.mark.parametrize(
        ("gaps", "begins"),
        [
            ((0, 0, 0, 656), (0, 0, 0)), ((64, 512, 16, 0), (0, 0, 0)), ((1, 3, 0, 0), (0, 0, 0)),
            ((0, 0, 0, 0), (1, 0, 0)), ((0, 0, 0, 0), (0, 0, 1)), ((0, 0, 0, 0), (4, 4, 4)),
            ((0, 0, 1, 2), (2, 1, 8)), ((0, 0, 4, 2), (0, 0, 4)), ((8, 8, 2, 6), (0, 0, 2)),
        ],
        ids=str,
    )  # fmt: skip
    def test_strides_and_addresses_are_free(self, impl, device, gaps, begins, kv_cache_dtype):
        for dtype, rope in product(("bfloat16", "half"), (64, 0)):
            posed = problem(
                device, oracle.shuffled(9, 128), dtype=dtype, kv_cache_dtype=kv_cache_dtype, gaps=gaps,
                begins=begins, sizes=(512, rope),
            )  # fmt: skip
            assert_writes(impl, posed)
