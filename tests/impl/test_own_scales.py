"""reshape_and_cache_flash_per_token_head on a CPU: its contract, Triton interpreted, CUDA compiled."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvexp.bench import run_curve
from kvexp.errors import Unsupported
from kvexp.gpu import nvrtc
from kvexp.impl.cuda import reshape_and_cache_flash_per_token_head
from kvexp.impl.cuda.launcher import SOURCES
from kvexp.impl.cuda.options import Options
from kvexp.impl.triton import Triton
from kvexp.op import PER_TOKEN_HEAD
from kvexp.op.quantize import quantize_heads
from tests.helpers import fp8_reference, oracle, own_scales, specialisations, tiny_curve
from tests.helpers.own_scales import INT8, OP, TO_FP8
from tests.impl.test_any_shape import IMPLS, settled, slot_mappings


@pytest.fixture(params=[*IMPLS, "library/torch"])
def impl(request):
    return request.param


@pytest.fixture
def device():
    return "cpu"


class TestContract(own_scales.OwnScalesContract):
    """On a CPU."""


@st.composite
def problems(draw: st.DrawFn, kinds: Any) -> own_scales.Problem:
    """A call on a small cache."""
    dtype, kv_cache_dtype = draw(st.sampled_from(kinds))
    blocks = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 16, 17]))
    return own_scales.problem(
        "cpu",
        draw(slot_mappings(blocks[0] * blocks[1])),
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        num_heads=draw(st.integers(1, 5)),
        sizes=draw(st.tuples(st.integers(1, 80), st.integers(1, 80))),
        blocks=blocks,
        heads_first=draw(st.booleans()),
        gaps=draw(st.tuples(*[st.integers(0, 33)] * 4)),
        begins=draw(st.tuples(*[st.integers(0, 17)] * 3)),
        extra_rows=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


@pytest.mark.parametrize("impl", IMPLS)
@settled
@given(posed=problems([kind for kind in own_scales.KINDS if kind[1] == INT8]))
def test_any_call_to_int8_holds_the_law(impl: str, posed: own_scales.Problem) -> None:
    own_scales.assert_writes(impl, posed)


@settled
@given(posed=problems([kind for kind in own_scales.KINDS if kind[1] == TO_FP8]))
def test_any_call_to_fp8_holds_the_law(posed: own_scales.Problem) -> None:
    own_scales.assert_writes("torch", posed)


@settled
@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=80),
    dtype=st.sampled_from(["half", "bfloat16", "float"]),
    kind=st.sampled_from(PER_TOKEN_HEAD),
)
def test_heads_of_any_bits_hold_the_law(bits: list[int], dtype: str, kind: str) -> None:
    words = np.array(bits, np.uint32)
    words = words if dtype == "float" else words.astype(np.uint16)
    head = torch.from_numpy(words).view(oracle.DTYPES[dtype])
    found = quantize_heads(head.view(1, 1, -1), kind)[0, 0].numpy()
    assert (found == own_scales.head_bytes(head.float().numpy(), kind)).all()


def test_int8_rounds_half_away_from_zero_in_float32():
    """The scale is 1; a step below a half is rounded up by its sum with a half."""
    below_half = float(np.nextafter(np.float32(0.5), np.float32(0)))
    items = [127.0, 0.5, -0.5, 0.49, below_half, -below_half, 1.5, 2.5, -126.5, 126.49, -0.0, np.nan]
    head = torch.tensor(items).view(1, 1, -1)
    *codes, _, _, _, _ = quantize_heads(head, INT8).view(torch.int8)[0, 0].tolist()
    assert codes == [127, 1, -1, 0, 1, -1, 2, 3, -127, 126, 0, -128]


@pytest.mark.parametrize("begin", [0, 1, 2, 4])
def test_the_triton_kernel_is_right_where_the_interpreter_s_conversion_is(begin, monkeypatch):
    """Of numbers that codes hold exactly; scales and places are those of any numbers."""
    monkeypatch.setattr(Triton, "_check_fp8", lambda self: None)
    numbers = torch.tensor([float(number) for number in fp8_reference.values("fp8_e4m3")])
    generator = torch.Generator().manual_seed(begin)
    codes = torch.randint(8, len(numbers), (9, 3, 128), generator=generator)
    codes[..., 0] = len(numbers) - 1
    powers = torch.randint(-8, 6, (9, 3, 1), generator=generator).float().exp2()
    powers[0, 0] = 0.0
    key = (numbers[codes] * powers).half()
    slots = [5, -1, 77, 9, 128, 0, 127, 300, 70]
    posed = own_scales.problem(
        "cpu", slots, dtype="half", kv_cache_dtype=TO_FP8, begins=(0, 0, begin), key=key, value=-key
    )
    expected = posed.expected()
    getattr(Triton("cpu"), OP)(*posed.arguments)()
    assert torch.equal(posed.storage, expected)


@pytest.mark.parametrize("arch", specialisations.ARCHES)
def test_the_cuda_kernel_compiles_for_every_access_without_a_gpu(arch):
    for number, begin in enumerate((0, 8, 4, 2, 1)):
        dtype, kind = own_scales.KINDS[number]
        sizes = ((128, 128), (192, 128), (100, 60), (33, 80), (576, 512))[number]
        posed = own_scales.problem(
            "cpu", [1, 5, 3], dtype=dtype, kv_cache_dtype=kind, begins=(0, 0, begin), sizes=sizes
        )
        spec, _, num_tokens = reshape_and_cache_flash_per_token_head.fit(*posed.arguments, options=Options())
        tuned = spec.tuned(Options(unroll=1 + number % 2), num_tokens, 132)
        assert nvrtc.compile_cubin(SOURCES / f"{tuned.kernel}.cu", dict(tuned.macros), arch)


@pytest.mark.parametrize(
    ("sizes", "begins", "fitted"),
    [
        ((128, 128), (0, 0, 0), (8, 16, 16, 8)),  # cells of 264 bytes
        ((64, 64), (0, 0, 0), (8, 8, 16, 8)),
        ((256, 256), (0, 0, 0), (8, 32, 16, 8)),
        ((1024, 8), (0, 0, 4), (8, 32, 16, 4)),
        ((100, 60), (0, 1, 0), (4, 32, 2, 8)),
        ((33, 80), (0, 0, 0), (1, 32, 2, 1)),
        ((8, 8), (4, 0, 0), (8, 1, 8, 8)),
    ],
)
def test_the_cuda_kernel_takes_the_widest_accesses_that_rows_and_cells_allow(sizes, begins, fitted):
    posed = own_scales.problem("cpu", [1, 5, 3], sizes=sizes, begins=begins, num_heads=1)
    spec = reshape_and_cache_flash_per_token_head.fit(*posed.arguments, options=Options())[0]
    assert (spec.vec, spec.lanes, dict(spec.macros)["SOURCE_ACCESS"], spec.cache_access) == fitted


@pytest.mark.parametrize(("unroll", "chunk_items", "lanes"), [(1, None, 16), (4, 4, 32), (2, 1, 32)])
def test_the_cuda_kernel_has_lanes_for_every_cell(unroll, chunk_items, lanes):
    posed = own_scales.problem("cpu", [1, 5, 3, 7, 9], num_heads=3)
    spec, _, num_tokens = reshape_and_cache_flash_per_token_head.fit(*posed.arguments, options=Options())
    tuned = spec.tuned(Options(unroll=unroll, chunk_items=chunk_items), num_tokens, 132)
    assert tuned.sizes(num_tokens) == (15,)
    assert tuned.threads(num_tokens) == -(-15 // unroll) * lanes
    assert dict(tuned.macros)["SOURCE_ACCESS"] == 2 * (chunk_items or 8)


def test_the_cuda_kernel_s_chunks_are_no_larger_than_heads_allow():
    posed = own_scales.problem("cpu", [1], sizes=(100, 60))
    spec = reshape_and_cache_flash_per_token_head.fit(*posed.arguments, options=Options())[0]
    with pytest.raises(Unsupported, match="chunk_items=8 is more than the 4 items that heads allow"):
        spec.tuned(Options(chunk_items=8), 1, 132)


@pytest.mark.parametrize("kv_cache_dtype", PER_TOKEN_HEAD)
@pytest.mark.parametrize("layout", ["NHD_packed", "HND_packed", "BHLNC"])
def test_a_curve_is_verified(layout, kv_cache_dtype):
    chosen = {"num_layers": 2, "num_tokens": (1, 16), "padding": 0.2, "head_size_v": 48}
    made = tiny_curve.curve(impl="torch", op=OP, kv_cache_dtype=kv_cache_dtype, layout=layout, **chosen)
    assert [point.status for point in run_curve.run(made, {})] == ["verified"] * 2
