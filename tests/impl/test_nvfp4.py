"""reshape_and_cache_flash_nvfp4 on a CPU: its contract, any call, Triton interpreted, CUDA compiled."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvexp.bench import run_curve
from kvexp.gpu import nvrtc
from kvexp.impl.cuda import reshape_and_cache_flash_nvfp4
from kvexp.impl.cuda.launcher import SOURCES, Spec
from kvexp.impl.cuda.options import Options
from kvexp.op.quantize_nvfp4 import quantize_nvfp4
from tests.helpers import nvfp4, oracle, specialisations, tiny_curve
from tests.helpers.nvfp4 import DTYPES, LAYOUTS, NVFP4_OP, Problem
from tests.impl.test_any_shape import IMPLS, settled, slot_mappings

# The interpreter divides by 0, and infinities by one another, as kernels do.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


@pytest.fixture(params=IMPLS)
def impl(request):
    return request.param


@pytest.fixture
def device():
    return "cpu"


class TestContract(nvfp4.Nvfp4Contract):
    """On a CPU."""


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A call on a small cache."""
    blocks = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 16, 17]))
    return nvfp4.problem(
        "cpu",
        draw(slot_mappings(blocks[0] * blocks[1])),
        layout=draw(st.sampled_from(LAYOUTS)),
        dtype=draw(st.sampled_from(DTYPES)),
        sizes=(draw(st.integers(1, 5)), 16 * draw(st.integers(1, 6))),
        blocks=blocks,
        gaps=draw(st.tuples(*[st.integers(0, 33)] * 3)),
        begins=draw(st.tuples(*[st.integers(0, 17)] * 3)),
        extra_rows=draw(st.integers(0, 3)),
        scales=draw(st.tuples(*[st.floats(2.0**-149, 2.0**127, width=32)] * 2)),
        seed=draw(st.integers(0, 2**31)),
    )


@pytest.mark.parametrize("impl", IMPLS)
@settled
@given(posed=problems())
def test_any_call_holds_the_law(impl: str, posed: Problem) -> None:
    nvfp4.assert_writes(impl, posed)


@settled
@given(
    bits=st.lists(st.integers(0, 2**16 - 1), min_size=16, max_size=16),
    dtype=st.sampled_from(DTYPES),
    scale=st.floats(2.0**-149, 2.0**127, width=32),
)
def test_tiles_of_any_bits_hold_the_law(bits: list[int], dtype: str, scale: float) -> None:
    rows = torch.tensor(bits).to(torch.uint16).view(oracle.DTYPES[dtype]).view(1, 1, 16)
    found = quantize_nvfp4(rows, torch.tensor(scale))
    assert all(map(np.array_equal, found, nvfp4.quantize(rows, scale)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", specialisations.ARCHES)
def test_the_cuda_kernel_compiles_for_every_access_without_a_gpu(arch, dtype):
    for number, begin in enumerate((0, 4, 1)):
        layout = LAYOUTS[number % 2]
        posed = nvfp4.problem("cpu", [1, 5, 3], dtype=dtype, layout=layout, begins=(begin, begin, begin))
        tuned = fit(posed).tuned(Options(unroll=1 + number % 2), 3, 132)
        assert nvrtc.compile_cubin(SOURCES / f"{tuned.kernel}.cu", dict(tuned.macros), arch)


def fit(posed: Problem) -> Spec:
    """The specialisation of a call."""
    return reshape_and_cache_flash_nvfp4.fit(*posed.arguments, options=Options()).spec


@pytest.mark.parametrize(
    ("chosen", "source", "codes"),
    [
        ({}, 16, 8),
        ({"begins": (4, 0, 0)}, 8, 8),
        ({"begins": (0, 1, 0)}, 2, 8),
        ({"gaps": (8, 8, 0)}, 16, 8),
        ({"begins": (0, 0, 4)}, 16, 4),
        ({"gaps": (0, 0, 2)}, 16, 2),
        ({"sizes": (1, 16), "blocks": (8, 1)}, 16, 1),  # a page of 18 bytes: V begins at byte 9
    ],
    ids=str,
)
def test_the_cuda_kernel_takes_the_widest_accesses_that_all_places_allow(chosen, source, codes):
    spec = fit(nvfp4.problem("cpu", [1, 5, 3], **chosen))
    assert (spec.source_access, spec.codes_access) == (source, codes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_curve_is_verified(layout):
    chosen = {"num_layers": 2, "num_tokens": (1, 16), "padding": 0.2, "layout": layout}
    made = tiny_curve.curve(impl="torch", op=NVFP4_OP, kv_cache_dtype="nvfp4", **chosen)
    assert [point.status for point in run_curve.run(made, {})] == ["verified"] * 2
