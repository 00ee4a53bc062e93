"""Calls of indexer_k_quant_and_cache, the bytes that they must leave, and its contract as tests.

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

from kvexp.op import Call
from kvexp.op.indexer_k_quant_and_cache import SCALE_FORMATS
from tests.helpers import fp8_reference, latent, oracle

INDEXER = "indexer_k_quant_and_cache"
ITEMS, SCALE_BYTES = 128, 4
KINDS = list(product(("half", "bfloat16"), SCALE_FORMATS))
"""dtype and scale_fmt."""


@dataclass
class Problem:
    """The tensors of one call, on a cache of random bytes in a larger storage."""

    k: Tensor
    kv_cache: Tensor
    slot_mapping: Tensor
    quant_block_size: object
    scale_fmt: object
    storage: Tensor

    @property
    def arguments(self) -> tuple[object, ...]:
        """The op's arguments, in order."""
        return (self.k, self.kv_cache, self.slot_mapping, self.quant_block_size, self.scale_fmt)

    def expected(self) -> Tensor:
        """Return the storage's bytes after a right call on its current bytes."""
        after = self.storage.cpu().clone().numpy()
        num_blocks, block_size, _ = self.kv_cache.shape
        begin = self.kv_cache.data_ptr() - self.storage.data_ptr()
        codes, scales = self.rows()
        for token, slot in enumerate(self.slot_mapping.tolist()):
            if 0 <= slot < num_blocks * block_size:
                block, offset = divmod(slot, block_size)
                at = begin + block * self.kv_cache.stride(0)
                scale_at = at + block_size * ITEMS + offset * SCALE_BYTES
                after[at + offset * ITEMS :][:ITEMS] = codes[token]
                after[scale_at:][:SCALE_BYTES] = scales[token]
        return torch.from_numpy(after).to(self.storage.device)

    def rows(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the codes and the bytes of the scale of each token."""
        keys = self.k[: len(self.slot_mapping)].float().cpu().numpy()
        amax = np.abs(np.where(np.isnan(keys), 0, keys)).max(1, initial=0)
        scales = np.maximum(amax, np.float32(1e-4)) / np.float32(448)
        if self.scale_fmt == "ue8m0":
            mantissa, exponent = np.frexp(scales)  # mantissas from 0.5 on
            powers = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
            scales = np.where(np.isinf(scales), scales, powers)
        scales = scales.astype("<f4")
        with np.errstate(all="ignore"):
            codes = fp8_reference.codes("fp8_e4m3", keys / scales[:, None])
        return codes, scales.view(np.uint8).reshape(len(keys), SCALE_BYTES)


def problem(
    device: str,
    slots: Sequence[int],
    *,
    dtype: str = "bfloat16",
    scale_fmt: str | None = "ue8m0",
    blocks: tuple[int, int] = (8, 16),
    gaps: tuple[int, int] = (0, 0),
    begins: tuple[int, int] = (0, 0),
    extra_rows: int = 0,
    k: Tensor | None = None,
    seed: int = 0,
) -> Problem:
    """Make a call that writes the slots.

    Args:
        device: The tensors'.
        slots: The slot mapping.
        dtype: Of the keys.
        scale_fmt: Of the scales.
        blocks: Blocks, and slots of one.
        gaps: Items between two keys, bytes between two blocks.
        begins: Items before the keys, bytes before the cache in their memory.
        extra_rows: Rows behind those of the tokens.
        k: Keys in place of random ones.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    if k is None:
        count, stride = len(slots) + extra_rows, ITEMS + gaps[0]
        numbers = torch.randn(begins[0] + (count + 1) * stride, generator=generator)
        k = numbers.to(oracle.DTYPES[dtype]).to(device).as_strided((count, ITEMS), (stride, 1), begins[0])
    width = ITEMS + SCALE_BYTES
    block_stride = blocks[1] * width + gaps[1]
    size = begins[1] + blocks[0] * block_stride + 8
    storage = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).to(device)
    cache = storage.as_strided((*blocks, width), (block_stride, width, 1), begins[1])
    mapping = torch.tensor(slots, dtype=torch.int64, device=device)
    return Problem(k, cache, mapping, ITEMS, scale_fmt, storage)


def bind(impl: str, posed: Problem) -> Call:
    """Bind the call of an implementation; see `oracle.implementation`."""
    return oracle.bind(impl, INDEXER, posed.arguments, posed.k.device)


def assert_writes(impl: str, posed: Problem) -> None:
    """Run the call and compare every byte of the storage."""
    expected = posed.expected()
    bind(impl, posed)()
    oracle.assert_same(posed.storage, expected)


def special_keys(dtype: str, device: str) -> Tensor:
    """Return keys that hold what a kernel may get wrong: `latent.special_tiles`, and limits of these scales.

    They are maxima at 1e-4 and at powers of two times 448 and a step beside, and ties over exact scales.
    """
    source = oracle.DTYPES[dtype]
    limits = torch.tensor([1e-4, *(448 * 2.0**exponent for exponent in range(-23, 8, 3))]).to(source)
    steps = [torch.nextafter(limits, torch.full_like(limits, to)) for to in (0.0, 1e4)]
    maxima = torch.cat([limits, *steps]).float()
    base = torch.linspace(-1, 1, ITEMS)
    numbers = torch.tensor([float(number) for number in fp8_reference.values("fp8_e4m3")])
    middles = (numbers[1:] + numbers[:-1]) / 2
    ties = torch.cat([torch.tensor([448.0, -448.0]), middles])[:ITEMS]
    own = torch.cat([maxima[:, None] * base, torch.stack([ties * 2.0**exponent for exponent in (-12, 0, 5)])])
    own = own.to(source).to(device)
    return torch.cat([latent.special_tiles(dtype, device).view(-1, ITEMS), own, -own])


class IndexerContract:
    """The contract of indexer_k_quant_and_cache, for the fixtures `impl` and `device` of a module."""

    @pytest.mark.parametrize(("dtype", "scale_fmt"), KINDS)
    def test_special_keys_hold_the_law(self, impl, device, dtype, scale_fmt):
        k = special_keys(dtype, device)
        slots = oracle.shuffled(len(k), 8 * 64)
        assert_writes(impl, problem(device, slots, dtype=dtype, scale_fmt=scale_fmt, blocks=(8, 64), k=k))

    @pytest.mark.parametrize("scale_fmt", SCALE_FORMATS)
    @pytest.mark.parametrize(
        "slots",
        [
            [], [-1, 5, 6, 7], [5, 6, 7, -1], [-1] * 3, [3, -2, -(2**62), 4], [3, 128, 5, 135, 2**40],
            [127, 0], list(range(21, 90)), [16 * b + b % 16 for b in (5, 0, 7, 2)],
        ],
        ids=str,
    )  # fmt: skip
    def test_slots_outside_the_cache_write_nothing(self, impl, device, slots, scale_fmt):
        assert_writes(impl, problem(device, slots, scale_fmt=scale_fmt, extra_rows=2))

    @pytest.mark.parametrize("blocks", [(8, 16), (9, 1), (1, 9), (3, 5), (2, 64)], ids=str)
    @pytest.mark.parametrize(
        ("gaps", "begins"),
        [
            ((0, 0), (0, 0)), ((0, 528), (0, 0)), ((64, 16), (0, 0)), ((1, 0), (0, 0)), ((0, 0), (1, 0)),
            ((0, 0), (0, 1)), ((0, 0), (4, 4)), ((0, 2), (2, 8)), ((8, 6), (0, 2)), ((0, 1), (8, 0)),
        ],
        ids=str,
    )  # fmt: skip
    def test_strides_and_addresses_are_free(self, impl, device, gaps, begins, blocks):
        for dtype, scale_fmt in KINDS:
            slots = oracle.shuffled(9, blocks[0] * blocks[1])
            posed = problem(
                device, slots, dtype=dtype, scale_fmt=scale_fmt, gaps=gaps, begins=begins, blocks=blocks
            )
            assert_writes(impl, posed)
