"""Calls of reshape_and_cache_flash_per_token_head, the bytes that they must leave, and its contract as tests.

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
from kvexp.op import PER_TOKEN_HEAD, Call
from tests.helpers import fp8_reference, oracle

OP = "reshape_and_cache_flash_per_token_head"
INT8, TO_FP8 = PER_TOKEN_HEAD
LARGEST = {INT8: 127, TO_FP8: 448}
HEAD = 128
"""Elements of the heads of `special_heads`."""
KINDS = [(dtype, kind) for dtype in oracle.WIDE for kind in PER_TOKEN_HEAD]
"""dtype and kv_cache_dtype."""


@dataclass
class Problem:
    """The tensors of one call, on a cache of random bytes in a larger storage."""

    key: Tensor
    value: Tensor
    kv_cache: Tensor
    slot_mapping: Tensor
    kv_cache_dtype: str
    storage: Tensor

    @property
    def arguments(self) -> tuple[object, ...]:
        """The op's arguments, in order."""
        return (self.key, self.value, self.kv_cache, self.slot_mapping, self.kv_cache_dtype)

    def expected(self) -> Tensor:
        """Return the storage's bytes after a right call on its current bytes."""
        after = self.storage.cpu().clone().numpy()
        num_blocks, block_size, num_heads, width = self.kv_cache.shape
        block_step, token_step, head_step, _ = self.kv_cache.stride()
        begin = self.kv_cache.data_ptr() - self.storage.data_ptr()
        cells = self.cells()
        for token, slot in enumerate(self.slot_mapping.tolist()):
            if 0 <= slot < num_blocks * block_size:
                first = begin + slot // block_size * block_step + slot % block_size * token_step
                for head in range(num_heads):
                    at = first + head * head_step
                    after[at : at + width] = cells[token, head]
        return torch.from_numpy(after).to(self.storage.device)

    def cells(self) -> NDArray[np.uint8]:
        """Return the bytes of each head of the tokens, `[num_tokens, num_heads, width]`."""
        rows = (rows[: len(self.slot_mapping)].cpu().float().numpy() for rows in (self.key, self.value))
        return np.concatenate([head_bytes(one, self.kv_cache_dtype) for one in rows], -1)


def head_bytes(items: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Return the codes of the heads in the last dim, and behind them their float32 scales."""
    amax = np.abs(np.where(np.isnan(items), np.float32(0), items)).max(-1, keepdims=True)
    scales = np.maximum(amax / np.float32(LARGEST[kind]), np.float32(1e-6)).astype("<f4")
    with np.errstate(all="ignore"):
        quotients = items / scales
        if kind == INT8:
            # A float64 holds the sum exactly where it is not the float32 0.5 anyway.
            rounded = np.floor((np.abs(quotients).astype(np.float64) + 0.5).astype(np.float32))
            signed = np.clip(np.copysign(rounded, quotients), -128, 127)
            codes = np.where(np.isnan(quotients), -128, signed).astype(np.int8).view(np.uint8)
        else:
            codes = fp8_reference.codes("fp8_e4m3", quotients)
    return np.concatenate([codes, scales.view(np.uint8)], -1)


def problem(
    device: str,
    slots: Sequence[int],
    *,
    dtype: str = "bfloat16",
    kv_cache_dtype: str = INT8,
    num_heads: int = 3,
    sizes: tuple[int, int] = (HEAD, HEAD),
    blocks: tuple[int, int] = (8, 16),
    heads_first: bool = False,
    gaps: tuple[int, int, int, int] = (0, 0, 0, 0),
    begins: tuple[int, int, int] = (0, 0, 0),
    extra_rows: int = 0,
    key: Tensor | None = None,
    value: Tensor | None = None,
    seed: int = 0,
) -> Problem:
    """Make a call that writes the slots.

    Args:
        device: The tensors'.
        slots: The slot mapping.
        dtype: Of keys and values.
        kv_cache_dtype: One of the formats.
        num_heads: Of both.
        sizes: Elements of a head of K and of V.
        blocks: Blocks, and slots of one.
        heads_first: Whether the slots of a head are neighbours, not the heads of a slot.
        gaps: Items between two rows of K and of V; bytes between two cells and two blocks.
        begins: Items before K and V in their memory, bytes before the cache.
        extra_rows: Rows behind those of the tokens.
        key: Rows in place of random ones; so value.
        value: See key.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    source = oracle.DTYPES[dtype]
    count = len(slots) + extra_rows
    rows = []
    for size, gap, begin, given in zip(sizes, gaps[:2], begins[:2], (key, value), strict=True):
        step = num_heads * size + gap
        numbers = torch.randn(begin + (count + 1) * step, generator=generator)
        own = numbers.to(source).to(device).as_strided((count, num_heads, size), (step, size, 1), begin)
        rows.append(own if given is None else given)
    width = sum(sizes) + 8
    cell = width + gaps[2]
    token_step, head_step = (cell, blocks[1] * cell) if heads_first else (num_heads * cell, cell)
    block_step = blocks[1] * num_heads * cell + gaps[3]
    storage = torch.randint(
        0, 256, (begins[2] + blocks[0] * block_step + 8,), dtype=torch.uint8, generator=generator
    ).to(device)
    strides = (block_step, token_step, head_step, 1)
    cache = storage.as_strided((*blocks, num_heads, width), strides, begins[2])
    mapping = torch.tensor(slots, dtype=torch.int64, device=device)
    return Problem(*rows, cache, mapping, kv_cache_dtype, storage)


def bind(impl: str, posed: Problem) -> Call:
    """Bind the call of an implementation; see `oracle.implementation`."""
    return oracle.bind(impl, OP, posed.arguments, posed.key.device)


def assert_writes(impl: str, posed: Problem) -> None:
    """Run the call and compare every byte of the storage; where an interpreter would convert, it refuses."""
    if impl == "triton" and posed.kv_cache_dtype == TO_FP8 and posed.key.device.type == "cpu":
        with pytest.raises(Unsupported, match="interpreter"):
            bind(impl, posed)
        return
    expected = posed.expected()
    with np.errstate(all="ignore"):  # the interpreter's numpy divides NaN and infinities
        bind(impl, posed)()
    oracle.assert_same(posed.storage, expected)


def special_heads(dtype: str, device: str) -> Tensor:
    """Return rows `[n, 3, 128]` whose heads hold what a kernel may get wrong, in one and in another sign.

    They are heads of zeros, of -0, of the smallest scales and just above them, of scales that are 1 and a
    step beside it, so that halves, and a step below a half, are quotients; of ties, subnormals, NaN,
    infinities, and the type's ends.
    """
    source = oracle.DTYPES[dtype]
    info = torch.finfo(source)
    base, one = torch.linspace(-1, 1, HEAD), torch.ones(HEAD)
    numbers = torch.tensor([float(number) for number in fp8_reference.values("fp8_e4m3")])
    middles = (numbers[1:] + numbers[:-1]) / 2
    halves = torch.arange(HEAD) + 0.5
    beside = [
        torch.nextafter(torch.tensor(float(amax), dtype=source), torch.tensor(to, dtype=source))
        for amax in (*LARGEST.values(), 0.5)
        for to in (0.0, 1e4)
    ]
    heads = [0 * one, -0 * one, base * info.tiny, base * info.max, base * info.tiny / 2]
    heads += [base * amax for amax in (1e-4, 127e-6, 128e-6, 448e-6, 449e-6, 126.0, 127.0, 254.0, 448.0, 3e4)]
    heads += [base * float(amax) for amax in beside]
    for rounding in (halves, halves - 0.25, *(one * float(amax) for amax in beside)):
        heads += [torch.cat([rounding[:-1], one[:1] * amax]) for amax in (127.0, 254.0, 15.875)]
    for rounding, scale in product((numbers, middles), (1, 2.0**-9, 0.37)):
        heads.append(torch.cat([rounding, one * 448])[:HEAD] * scale)
    for value in (torch.nan, torch.inf, -torch.inf, info.tiny / 2):
        with_one = base.clone()
        with_one[37] = value
        heads += [with_one, one * value]
    both = base.clone()
    both[[3, 100]] = torch.tensor([torch.nan, torch.inf])
    found = torch.stack([*heads, both])
    found = torch.cat([found, -found, found.flip(1)])
    return found[: len(found) // 3 * 3].to(source).view(-1, 3, HEAD).to(device)


class OwnScalesContract:
    """The contract of the op, for the fixtures `impl` and `device` of a module."""

    @pytest.mark.parametrize(("dtype", "kv_cache_dtype"), KINDS)
    def test_special_heads_hold_the_law(self, impl, device, dtype, kv_cache_dtype):
        key = special_heads(dtype, device)
        posed = problem(
            device, oracle.shuffled(len(key), 128), dtype=dtype, kv_cache_dtype=kv_cache_dtype, key=key,
            value=key.flip(0),
        )  # fmt: skip
        assert_writes(impl, posed)

    @pytest.mark.parametrize("kv_cache_dtype", PER_TOKEN_HEAD)
    @pytest.mark.parametrize(
        "sizes",
        [(128, 128), (64, 192), (192, 128), (320, 264), (1, 1), (7, 3), (100, 60), (33, 80), (8, 24)],
        ids=str,
    )
    def test_every_size_holds_the_law(self, impl, device, sizes, kv_cache_dtype):
        for (dtype, num_heads), blocks in zip(
            (("bfloat16", 1), ("float", 5), ("half", 8)), ((5, 64), (7, 1), (8, 3)), strict=True
        ):
            slots = oracle.shuffled(3, blocks[0] * blocks[1])
            posed = problem(
                device, slots, dtype=dtype, kv_cache_dtype=kv_cache_dtype, sizes=sizes, blocks=blocks,
                num_heads=num_heads, heads_first=num_heads == 5,
            )  # fmt: skip
            assert_writes(impl, posed)

    @pytest.mark.parametrize("kv_cache_dtype", PER_TOKEN_HEAD)
    @pytest.mark.parametrize(
        "slots",
        [
            [], [-1, 5, 6, 7], [5, 6, 7, -1], [-1] * 3, [3, -2, -(2**62), 4], [3, 128, 5, 135, 2**40],
            [127, 0], list(range(21, 55)), [16 * b + b % 16 for b in (5, 0, 7, 2)],
        ],
        ids=str,
    )  # fmt: skip
    def test_slots_outside_the_cache_write_nothing(self, impl, device, slots, kv_cache_dtype):
        assert_writes(impl, problem(device, slots, kv_cache_dtype=kv_cache_dtype, extra_rows=2))

    @pytest.mark.parametrize("kv_cache_dtype", PER_TOKEN_HEAD)
    @pytest.mark.parametrize(
        ("gaps", "begins"),
        [
            ((0, 0, 0, 264), (0, 0, 0)), ((64, 512, 16, 0), (0, 0, 0)), ((1, 3, 0, 0), (0, 0, 0)),
            ((0, 0, 0, 0), (1, 0, 0)), ((0, 0, 0, 0), (0, 0, 1)), ((0, 0, 0, 0), (4, 4, 4)),
            ((0, 0, 1, 2), (2, 1, 8)), ((0, 0, 4, 2), (0, 0, 4)), ((8, 8, 8, 8), (0, 0, 8)),
        ],
        ids=str,
    )  # fmt: skip
    def test_strides_and_addresses_are_free(self, impl, device, gaps, begins, kv_cache_dtype):
        for dtype, heads_first in product(("bfloat16", "float"), (False, True)):
            posed = problem(
                device, oracle.shuffled(9, 128), dtype=dtype, kv_cache_dtype=kv_cache_dtype, gaps=gaps,
                begins=begins, heads_first=heads_first,
            )  # fmt: skip
            assert_writes(impl, posed)
