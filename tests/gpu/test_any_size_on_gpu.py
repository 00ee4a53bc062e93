"""Heads of any size hold the law with every type and scale: each size by itself, and sizes that are drawn.

The CUDA kernels cannot run elsewhere, and Triton's interpreter does not convert to fp8.
"""

import random

import pytest
import torch

from kvexp.op import FP8
from tests.helpers import compose, oracle
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

DEVICE = "cuda:0"
PAIRS = compose.pairs()
TYPES = [
    *((dtype, "auto", "per_tensor") for dtype in oracle.WIDE),
    *((dtype, dtype, "per_tensor") for dtype in FP8),
    *((dtype, fp8, scale) for dtype in oracle.WIDE for fp8 in FP8 for scale in ("per_tensor", "per_head")),
]
"""dtype, kv_cache_dtype, scale."""

IMPLS = [name for name in compose.implementations() if name != "torch"]


def readable(posed):
    """The call without scales where it reads none."""
    converts = posed.kv_cache_dtype != "auto" and posed.key.itemsize > 1
    return posed if converts else oracle.without_scales(posed)


@pytest.mark.parametrize("types", [types for types in TYPES if types[1] != "auto"], ids="-".join)
@pytest.mark.parametrize("head_size", [1, 2, 3, 4, 7, 8, 12, 15, 17, 40, 45, 46, 100, 120])
def test_cuda_writes_fp8_heads_of_every_size(head_size, types):
    dtype, kv_cache_dtype, scale = types
    asked = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "scale": scale, "num_heads": 3}
    slots = [-1, *oracle.shuffled(37, 128), 10**6]
    for layout in ("NHD", "HND"):
        posed = oracle.problem(DEVICE, slots, op=FLASH, layout=layout, head_size=head_size, **asked)
        oracle.assert_writes("cuda", readable(posed))
    sizes = {"head_size": head_size, "head_size_v": 24}
    oracle.assert_writes("cuda", readable(oracle.problem(DEVICE, slots, op=DIFFKV, **sizes, **asked)))


@pytest.mark.parametrize("fp8", FP8)
@pytest.mark.parametrize("head_size", [1, 7, 46, 100])
@pytest.mark.parametrize("impl", IMPLS)
def test_every_sixteen_bit_value_is_quantised_in_heads_of_any_size(impl, head_size, fp8):
    num_tokens = -(-(2**16) // (3 * head_size))
    every = torch.arange(num_tokens * 3 * head_size, device=DEVICE).remainder(2**16).to(torch.int32)
    rows = every.to(torch.int16).view(torch.bfloat16).view(num_tokens, 3, head_size)
    posed = oracle.problem(
        DEVICE, list(range(num_tokens)), kv_cache_dtype=fp8, scale="per_head", num_heads=3,
        head_size=head_size, num_blocks=-(-num_tokens // 16), key=rows, value=rows,
    )  # fmt: skip
    oracle.assert_writes(impl, posed)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("impl", [*IMPLS, "library/cuda"])
def test_calls_of_any_size_and_stride_hold_the_law(impl, seed):
    oracle.assert_writes(impl, readable(drawn(random.Random(seed), DEVICE)))


def drawn(some, device):
    """A call on a cache of some kilobytes: rows begin anywhere and have anything between them."""
    op, layout = some.choice(PAIRS)
    dtype, kv_cache_dtype, scale = some.choice(TYPES)
    item = oracle.DTYPES[dtype]
    whole = 16 // (item.itemsize if kv_cache_dtype == "auto" else 1) if op == PAGED else 1
    head_size = whole * some.randint(1, 140 // whole)
    sizes = {
        "num_blocks": some.randint(1, 5),
        "block_size": some.choice([1, 3, 8, 16, 17]),
        "num_heads": some.randint(1, 5),
        "num_layers": some.randint(1, 3),
        "head_size": head_size,
        "head_size_v": some.randint(1, 140) if op == DIFFKV else head_size,
    }
    num_slots = sizes["num_blocks"] * sizes["block_size"]
    slots = some.sample(range(num_slots), some.randint(0, num_slots)) + some.choices(
        [-1, num_slots, 2**40], k=3
    )
    some.shuffle(slots)
    rows = {
        name: views(some, len(slots), sizes["num_heads"], sizes[size], item, device)
        for name, size in (("key", "head_size"), ("value", "head_size_v"))
    }
    asked = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "scale": scale}
    posed = oracle.problem(device, slots, op=op, layout=layout, **asked, **rows, **sizes)
    distances = some.choice([(1, 1), (2, 2), (1, 3), (3, 1)])
    return oracle.with_blocks_apart(posed, *distances) if op == PAGED else posed


def views(some, num_tokens, num_heads, head_size, dtype, device):
    """Rows that begin at any item, any distance apart."""
    begin, between = some.randint(0, 17), some.randint(0, 33)
    stride = num_heads * head_size + between
    generator = torch.Generator(device).manual_seed(some.randint(0, 2**31))
    numbers = torch.randn(begin + (num_tokens + 1) * stride, device=device, generator=generator)
    return numbers.to(dtype).as_strided((num_tokens, num_heads, head_size), (stride, head_size, 1), begin)
