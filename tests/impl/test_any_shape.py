"""Any call that the contract allows holds the law: sizes, strides, types and slots are drawn."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvexp.op import FP8
from tests.helpers import compose, oracle
from tests.helpers.oracle import DIFFKV, PAGED

# Triton interprets where there is no GPU; where there is one it is under test there.
IMPLS = ["torch"] if torch.cuda.is_available() else ["torch", "triton"]
PAIRS = compose.pairs()
KINDS = [
    *((dtype, "auto", "per_tensor") for dtype in oracle.WIDE),
    *((dtype, dtype, "per_tensor") for dtype in FP8),
    *((dtype, fp8, scale) for dtype in oracle.WIDE for fp8 in FP8 for scale in ("per_tensor", "per_head")),
]
"""dtype, kv_cache_dtype, scale; those that copy first."""
COPIED = KINDS[: len(oracle.WIDE) + len(FP8)]


@st.composite
def problems(draw: st.DrawFn, kinds: Sequence[tuple[str, str, str]]) -> oracle.Problem:
    """A call on a cache of some bytes to a few kilobytes."""
    op, layout = draw(st.sampled_from(PAIRS))
    dtype, kv_cache_dtype, scale = draw(st.sampled_from(kinds))
    sizes: dict[str, Any] = {
        "num_blocks": draw(st.integers(1, 5)),
        "block_size": draw(st.sampled_from([1, 2, 3, 8, 16, 17])),
        "num_heads": draw(st.integers(1, 5)),
        "num_layers": draw(st.integers(1, 3)),
        **draw(head_sizes(op, dtype, kv_cache_dtype)),
    }
    slots = draw(slot_mappings(sizes["num_blocks"] * sizes["block_size"]))
    seed = draw(st.integers(0, 2**31))
    rows: dict[str, Any] = {
        name: draw(views(len(slots), sizes["num_heads"], sizes[size], oracle.DTYPES[dtype], seed + number))
        for number, (name, size) in enumerate((("key", "head_size"), ("value", "head_size_v")))
    }
    return oracle.problem(
        "cpu", slots, op=op, layout=layout, dtype=dtype, kv_cache_dtype=kv_cache_dtype, scale=scale, **rows,
        **sizes,
    )  # fmt: skip


@st.composite
def head_sizes(draw: st.DrawFn, op: str, dtype: str, kv_cache_dtype: str) -> dict[str, int]:
    """What the op takes: whole pieces of 16 bytes for the head-major cache, else any."""
    item_bytes = oracle.DTYPES[dtype].itemsize if kv_cache_dtype == "auto" else 1
    whole = 16 // item_bytes if op == PAGED else 1
    sizes = st.integers(1, 80 // whole).map(lambda count: count * whole)
    head_size = draw(sizes)
    return {"head_size": head_size, "head_size_v": draw(sizes) if op == DIFFKV else head_size}


@st.composite
def slot_mappings(draw: st.DrawFn, num_slots: int) -> list[int]:
    """Slots of the cache, each at most once, among negative ones and ones beyond the end."""
    some = st.lists(st.integers(0, num_slots - 1), unique=True, max_size=40)
    # Calls of padding alone would hardly come up by themselves.
    inside = draw(st.one_of(st.just([]), some, some, some))
    below = st.integers(-(2**63), -1) | st.just(-1)
    beyond = st.integers(num_slots, 2**63 - 1) | st.integers(num_slots, num_slots + 2)
    outside = draw(st.lists(below | beyond, max_size=10))
    return draw(st.permutations(inside + outside))


@st.composite
def views(
    draw: st.DrawFn, num_tokens: int, num_heads: int, head_size: int, dtype: torch.dtype, seed: int
) -> Tensor:
    """Rows with anything between them, before them and behind them: a base at any item, any row stride."""
    begin, between, extra = (draw(st.integers(0, most)) for most in (17, 33, 3))
    row = num_heads * head_size
    stride = row + between
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(begin + (num_tokens + extra + 1) * stride, generator=generator)
    shape = (num_tokens + extra, num_heads, head_size)
    return numbers.to(dtype).as_strided(shape, (stride, head_size, 1), begin)


def settled(test: Any) -> Any:
    """The test with the same fifty examples each time, however slow the machine."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    made = settings(
        max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=slow
    )
    return made(test)


@pytest.mark.parametrize("impl", IMPLS)
@settled
@given(posed=problems(COPIED))
def test_any_call_that_copies_holds_the_law(impl: str, posed: oracle.Problem) -> None:
    oracle.assert_writes(impl, oracle.without_scales(posed))


@settled
@given(posed=problems(KINDS))
def test_any_call_that_may_convert_holds_the_law(posed: oracle.Problem) -> None:
    oracle.assert_writes("torch", posed)
