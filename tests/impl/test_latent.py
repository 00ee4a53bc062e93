"""concat_and_cache_mla on a CPU: its contract, any call, Triton interpreted, CUDA compiled."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvexp.bench import run_curve
from kvexp.gpu import nvrtc
from kvexp.impl.cuda import concat_and_cache_mla
from kvexp.impl.cuda.launcher import SOURCES
from kvexp.impl.cuda.options import Options
from kvexp.impl.triton import Triton
from kvexp.op.quantize import quantize_tiles
from tests.helpers import fp8_reference, latent, oracle, specialisations, tiny_curve
from tests.helpers.latent import DS_MLA, MLA
from tests.impl.test_any_shape import IMPLS, settled, slot_mappings

SIZES = {"num_heads": 1, "head_size": 512, "head_size_v": 64}


@pytest.fixture(params=[*IMPLS, "library/torch"])
def impl(request):
    return request.param


@pytest.fixture
def device():
    return "cpu"


class TestContract(latent.LatentContract):
    """On a CPU."""


@st.composite
def problems(draw: st.DrawFn, kinds: Any) -> latent.Problem:
    """A call on a small cache."""
    dtype, kv_cache_dtype = draw(st.sampled_from(kinds))
    fixed = st.sampled_from([(512, 64), (512, 0)])
    free = st.tuples(st.integers(1, 80), st.integers(0, 80))
    blocks = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 16, 17]))
    return latent.problem(
        "cpu",
        draw(slot_mappings(blocks[0] * blocks[1])),
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        sizes=draw(fixed if kv_cache_dtype == DS_MLA else free),
        blocks=blocks,
        gaps=draw(st.tuples(*[st.integers(0, 33)] * 4)),
        begins=draw(st.tuples(*[st.integers(0, 17)] * 3)),
        extra_rows=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


@pytest.mark.parametrize("impl", IMPLS)
@settled
@given(posed=problems(latent.COPIED))
def test_any_call_that_copies_holds_the_law(impl: str, posed: latent.Problem) -> None:
    latent.assert_writes(impl, posed)


@settled
@given(posed=problems(latent.KINDS))
def test_any_call_that_may_convert_holds_the_law(posed: latent.Problem) -> None:
    latent.assert_writes("torch", posed)


@settled
@given(
    bits=st.lists(st.integers(0, 2**16 - 1), min_size=128, max_size=128),
    dtype=st.sampled_from(["half", "bfloat16"]),
)
def test_tiles_of_any_bits_hold_the_law(bits: list[int], dtype: str) -> None:
    rows = torch.tensor(bits * 4).to(torch.uint16).view(oracle.DTYPES[dtype]).view(1, 512)
    posed = latent.problem("cpu", [3], dtype=dtype, kv_cache_dtype=DS_MLA, kv_c=rows)
    assert (quantize_tiles(rows.unsqueeze(1))[0, 0].numpy() == posed.rows()[0, :528]).all()


@pytest.mark.parametrize("begin", [0, 1, 2, 4])
@pytest.mark.parametrize("dtype", ["half", "bfloat16"])
def test_the_triton_kernel_is_right_where_the_interpreter_s_conversion_is(dtype, begin, monkeypatch):
    """Of numbers that codes hold exactly; scales, k_pe and places are those of any numbers."""
    monkeypatch.setattr(Triton, "_check_fp8", lambda self: None)
    numbers = torch.tensor([float(number) for number in fp8_reference.values("fp8_e4m3")])
    generator = torch.Generator().manual_seed(begin)
    codes = torch.randint(8, len(numbers), (9, 4, 128), generator=generator)
    codes[..., 0] = len(numbers) - 1  # amax is 448 times a power of two
    powers = torch.randint(-8, 6, (9, 4, 1), generator=generator).float().exp2()
    powers[0, 0] = 0.0
    kv_c = (numbers[codes] * powers).view(9, 512).to(oracle.DTYPES[dtype])
    slots = [5, -1, 77, 9, 128, 0, 127, 300, 70]
    chosen = {"dtype": dtype, "kv_cache_dtype": DS_MLA, "begins": (0, 0, begin)}
    for rope in (64, 0):
        posed = latent.problem("cpu", slots, **chosen, kv_c=kv_c, sizes=(512, rope))
        expected = posed.expected()
        getattr(Triton("cpu"), MLA)(*posed.arguments)()
        assert torch.equal(posed.storage, expected)


@pytest.mark.filterwarnings("ignore")  # numpy multiplies infinities by 0 there, as it shall
@pytest.mark.parametrize("dtype", ["half", "bfloat16"])
def test_the_triton_kernel_has_the_scales_of_special_tiles_in_the_interpreter(dtype, monkeypatch):
    monkeypatch.setattr(Triton, "_check_fp8", lambda self: None)
    kv_c = latent.special_tiles(dtype, "cpu")
    slots = oracle.shuffled(len(kv_c), 128)
    posed = latent.problem("cpu", slots, dtype=dtype, kv_cache_dtype=DS_MLA, kv_c=kv_c)
    getattr(Triton("cpu"), MLA)(*posed.arguments)()
    assert (posed.kv_cache.view(-1, 656)[slots, 512:].numpy() == posed.rows()[:, 512:]).all()


@pytest.mark.parametrize("arch", specialisations.ARCHES)
def test_the_cuda_kernel_compiles_for_every_access_without_a_gpu(arch):
    for number, begin in enumerate((0, 8, 4, 2, 1)):
        dtype, rope = ("half", 64) if number % 2 else ("bfloat16", 64 * (number > 0))
        posed = latent.problem(
            "cpu", [1, 5, 3], dtype=dtype, kv_cache_dtype=DS_MLA, begins=(0, 0, begin), sizes=(512, rope)
        )
        spec, _, num_tokens = concat_and_cache_mla.fit(*posed.arguments, options=Options())
        tuned = spec.tuned(Options(unroll=1 + number % 2), num_tokens, 132)
        assert tuned.kernel == DS_MLA
        assert nvrtc.compile_cubin(SOURCES / f"{tuned.kernel}.cu", dict(tuned.macros), arch)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e4m3", "fp8_e5m2", DS_MLA])
@pytest.mark.parametrize("rope", [64, 0])
def test_a_curve_is_verified(kv_cache_dtype, rope):
    chosen = {**SIZES, "head_size_v": rope, "num_layers": 2, "num_tokens": (1, 16), "padding": 0.2}
    made = tiny_curve.curve(impl="torch", op=MLA, kv_cache_dtype=kv_cache_dtype, **chosen)
    assert [point.status for point in run_curve.run(made, {})] == ["verified"] * 2


def test_the_cuda_kernels_take_the_widest_accesses_that_all_rows_allow():
    """Also beside rows of k_pe without elements, whose distance is arbitrary."""
    for kv_cache_dtype in ("auto", "fp8_e4m3", DS_MLA):
        for rope in (torch.zeros(3, 0), torch.zeros(3, 64)):
            posed = latent.problem(
                "cpu",
                [1, 5, 3],
                kv_cache_dtype=kv_cache_dtype,
                k_pe=rope.bfloat16(),
                sizes=(512, rope.shape[1]),
            )
            spec = concat_and_cache_mla.fit(*posed.arguments, options=Options())[0]
            if kv_cache_dtype == DS_MLA:
                assert (spec.source_access, spec.cache_access) == (16, 16)
            else:
                assert spec.vec * spec.items.cache_bytes == 16
