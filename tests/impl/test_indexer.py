"""indexer_k_quant_and_cache on a CPU: its contract, any call, Triton interpreted, CUDA compiled."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvexp.bench import run_curve
from kvexp.errors import ConfigError, Unsupported
from kvexp.gpu import nvrtc
from kvexp.impl.cuda import indexer_k_quant_and_cache
from kvexp.impl.cuda.launcher import SOURCES
from kvexp.impl.cuda.options import Options
from kvexp.impl.triton import Triton
from kvexp.op.indexer_k_quant_and_cache import IndexerKQuantAndCache
from kvexp.op.quantize import quantize_indexer_key
from tests.helpers import fp8_reference, indexer, oracle, specialisations, tiny_curve
from tests.helpers.indexer import INDEXER, ITEMS, KINDS
from tests.impl.test_any_shape import settled, slot_mappings


@pytest.fixture(params=["torch", "library/torch"])
def impl(request):
    return request.param


@pytest.fixture
def device():
    return "cpu"


class TestContract(indexer.IndexerContract):
    """On a CPU."""


@st.composite
def problems(draw: st.DrawFn) -> indexer.Problem:
    """A call on a small cache."""
    dtype, scale_fmt = draw(st.sampled_from(KINDS))
    blocks = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 16, 17]))
    return indexer.problem(
        "cpu",
        draw(slot_mappings(blocks[0] * blocks[1])),
        dtype=dtype,
        scale_fmt=scale_fmt,
        blocks=blocks,
        gaps=draw(st.tuples(*[st.integers(0, 33)] * 2)),
        begins=draw(st.tuples(*[st.integers(0, 17)] * 2)),
        extra_rows=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


@settled
@given(posed=problems())
def test_any_call_holds_the_law(posed: indexer.Problem) -> None:
    indexer.assert_writes("torch", posed)


@settled
@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=ITEMS, max_size=ITEMS), kind=st.sampled_from(KINDS))
def test_keys_of_any_bits_hold_the_law(bits: list[int], kind: tuple[str, str]) -> None:
    dtype, scale_fmt = kind
    k = torch.tensor(bits).to(torch.uint16).view(oracle.DTYPES[dtype]).view(1, ITEMS)
    posed = indexer.problem("cpu", [3], dtype=dtype, scale_fmt=scale_fmt, k=k)
    for made, right in zip(quantize_indexer_key(k, scale_fmt), posed.rows(), strict=True):
        assert (made.numpy() == right).all()


def test_triton_refuses_to_convert_in_its_interpreter():
    with pytest.raises(Unsupported, match="interpreter"):
        indexer.bind("triton", indexer.problem("cpu", [3]))


@pytest.mark.parametrize("begin", [0, 1, 2, 4])
@pytest.mark.parametrize(("dtype", "scale_fmt"), KINDS)
def test_the_triton_kernel_is_right_where_the_interpreter_s_conversion_is(
    dtype, scale_fmt, begin, monkeypatch
):
    """Of numbers that codes hold exactly; scales and places are those of any numbers."""
    monkeypatch.setattr(Triton, "_check_fp8", lambda self: None)
    numbers = torch.tensor([float(number) for number in fp8_reference.values("fp8_e4m3")])
    generator = torch.Generator().manual_seed(begin)
    codes = torch.randint(8, len(numbers), (9, ITEMS), generator=generator)
    codes[:, 5] = len(numbers) - 1  # amax is 448 times a power of two
    powers = torch.randint(-8, 6, (9, 1), generator=generator).float().exp2()
    powers[0] = 0.0
    signs = torch.randint(0, 2, (9, ITEMS), generator=generator) * 2 - 1
    k = (numbers[codes] * signs * powers).to(oracle.DTYPES[dtype])
    for blocks, gap in (((8, 16), 0), ((8, 16), 2), ((130, 1), 0), ((1, 130), 0)):
        posed = indexer.problem(
            "cpu", [5, -1, 77, 9, 130, 0, 127, 300, 70], dtype=dtype, scale_fmt=scale_fmt, k=k,
            begins=(0, begin), blocks=blocks, gaps=(0, gap),
        )  # fmt: skip
        expected = posed.expected()
        getattr(Triton("cpu"), INDEXER)(*posed.arguments)()
        assert torch.equal(posed.storage, expected)


@pytest.mark.filterwarnings("ignore")  # numpy divides by infinities there, as it shall
@pytest.mark.parametrize(("dtype", "scale_fmt"), KINDS)
def test_the_triton_kernel_has_the_scales_of_special_keys_in_the_interpreter(dtype, scale_fmt, monkeypatch):
    monkeypatch.setattr(Triton, "_check_fp8", lambda self: None)
    k = indexer.special_keys(dtype, "cpu")
    slots = list(range(len(k)))
    posed = indexer.problem("cpu", slots, dtype=dtype, scale_fmt=scale_fmt, k=k, blocks=(1, len(k)))
    getattr(Triton("cpu"), INDEXER)(*posed.arguments)()
    scales = posed.kv_cache.flatten()[len(k) * ITEMS :].numpy()
    assert (scales.reshape(len(k), -1) == posed.rows()[1]).all()


@pytest.mark.parametrize("arch", specialisations.ARCHES)
def test_the_cuda_kernel_compiles_for_every_access_without_a_gpu(arch):
    for number, begin in enumerate((0, 8, 4, 2, 1)):
        dtype, scale_fmt = KINDS[number % len(KINDS)]
        posed = indexer.problem("cpu", [1, 5], dtype=dtype, scale_fmt=scale_fmt, begins=(0, begin))
        spec, _, num_tokens = indexer_k_quant_and_cache.fit(*posed.arguments, options=Options())
        assert (spec.source_access, spec.cache_access) == (16, begin or 16)
        tuned = spec.tuned(Options(unroll=1 + number % 2), num_tokens, 132)
        assert nvrtc.compile_cubin(SOURCES / f"{tuned.kernel}.cu", dict(tuned.macros), arch)


@pytest.mark.parametrize(("num_tokens", "unroll"), [(1, 1), (33, 2), (2**29, 1), (2**31, 4)])
def test_the_cuda_grid_has_eight_lanes_for_every_key(num_tokens, unroll):
    posed = indexer.problem("cpu", [1, 5])
    spec = indexer_k_quant_and_cache.fit(*posed.arguments, options=Options())[0]
    tuned = spec.tuned(Options(unroll=unroll), num_tokens, 132)
    assert tuned.threads(num_tokens) * unroll >= 8 * num_tokens
    assert tuned.wide_index == (num_tokens >= 2**29)


@pytest.mark.parametrize("scale_fmt", indexer.SCALE_FORMATS)
def test_a_curve_is_verified(scale_fmt):
    sizes = {"num_heads": 1, "head_size": ITEMS, "head_size_v": 0, "num_layers": 2, "num_tokens": (1, 16)}
    made = tiny_curve.curve(impl="torch", op=INDEXER, kv_cache_dtype="fp8_e4m3", padding=0.2, **sizes)
    made = replace(made, op=replace(made.op, options={"scale_fmt": scale_fmt}))
    assert {case.op_options for case in made.cases()} == {f'{{"scale_fmt":"{scale_fmt}"}}'}
    assert [point.status for point in run_curve.run(made, {})] == ["verified"] * 2


def test_an_unknown_scale_format_of_the_op_is_refused():
    with pytest.raises(ConfigError, match=r"op\.scale_fmt must be float32 or ue8m0, not 'e8m0'"):
        IndexerKQuantAndCache(scale_fmt="e8m0")
