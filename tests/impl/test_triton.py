import json
import os
import re
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
import triton

from kvexp.errors import Unsupported
from kvexp.impl.triton import FEW_ITEMS, TILE_ITEMS, Triton, tile
from tests import composed, law

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets where there is no GPU")

AUTO = [
    {"arch": arch, "dtype": dtype, "fp8": False, "aligned": True}
    for arch, dtype in product([80, 89, 90, 100], composed.options("dtype"))
]
FP8 = [
    {"arch": arch, "dtype": dtype, "fp8": True, "aligned": True}
    for arch, dtype in product([90, 100], composed.options("dtype"))
]
MISALIGNED = {"arch": 90, "dtype": "bfloat16", "fp8": False, "aligned": False}


@cache
def _all(folder: Path) -> dict[str, dict[str, object]]:
    asked = [*AUTO, *FP8, MISALIGNED]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.impl.ptx", json.dumps(asked)],
        cwd=Path(__file__).parents[2],
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    return {json.dumps(one): found for one, found in zip(asked, made, strict=True)}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """PTX and the cubin's size of one specialisation."""
    folder = tmp_path_factory.mktemp("triton")
    return lambda asked: _all(folder)[json.dumps(asked)]


class TestCompiledWithoutAGpu:
    def test_every_architecture_and_type_gives_machine_code(self, compiled):
        for asked in (*AUTO, *FP8):
            assert compiled(asked)["cubin_bytes"] > 0
            assert f".target sm_{asked['arch']}" in compiled(asked)["ptx"]

    def test_fp8_divides_exactly_and_never_rounds_towards_zero(self, compiled):
        for asked in FP8:
            ptx = compiled(asked)["ptx"]
            assert "div.rn.f32" in ptx
            assert "cvt.rn.satfinite.e4m3x2.f32" in ptx
            assert "div.full" not in ptx
            assert "cvt.rz" not in ptx

    def test_a_copy_converts_nothing(self, compiled):
        for asked in AUTO:
            assert re.findall(r"(?:div|cvt)\.\w*\.?\w*f(?:16|32)\b", compiled(asked)["ptx"]) == []

    @pytest.mark.parametrize("arch", [80, 89, 90, 100])
    def test_aligned_rows_move_in_accesses_of_sixteen_bytes(self, compiled, arch):
        ptx = compiled({"arch": arch, "dtype": "bfloat16", "fp8": False, "aligned": True})["ptx"]
        assert re.search(r"ld\.global\S*\.v4\.b32", ptx)
        assert re.search(r"st\.global\S*\.v4\.b32", ptx)
        assert not re.search(r"(?:ld|st)\.global\S*\.b16", ptx)

    def test_rows_that_may_be_misaligned_move_item_by_item(self, compiled):
        ptx = compiled(MISALIGNED)["ptx"]
        assert not re.search(r"(?:ld|st)\.global\S*\.v[24]", ptx)


@interpreted
class TestInterpreted:
    @pytest.fixture
    def unchecked(self, monkeypatch):
        monkeypatch.setattr(Triton, "_check_fp8", lambda self: None)

    @pytest.mark.parametrize("dtype", composed.options("dtype"))
    @pytest.mark.parametrize("layout", composed.options("layout"))
    def test_fp8_codes_land_in_their_places(self, unchecked, layout, dtype):
        """With values that fp8 holds exactly, which the interpreter converts exactly."""
        generator = torch.Generator().manual_seed(1)
        # Normal numbers of e4m3 whose halves are normal too.
        mantissa = torch.randint(8, 16, (2, 21, 3, 64), generator=generator)
        exponent = torch.randint(-8, 5, (2, 21, 3, 64), generator=generator)
        sign = torch.randint(0, 2, (2, 21, 3, 64), generator=generator) * 2 - 1
        values = (sign * mantissa * 2.0**exponent).to(law.DTYPES[dtype])
        posed = law.problem(
            "cpu", [-1, *law.shuffled(19, 128), 10**6], layout=layout, dtype=dtype, kv_cache_dtype="fp8",
            num_heads=3, key=values[0], value=values[1],
        )  # fmt: skip
        posed.k_scale.fill_(1.0)
        posed.v_scale.fill_(2.0)
        law.assert_writes("triton", posed)

    def test_fp8_is_refused_since_its_conversion_is_wrong(self):
        with pytest.raises(Unsupported, match=r"needs a GPU: Triton's interpreter converts to fp8 wrongly"):
            law.problem("cpu", [1], kv_cache_dtype="fp8").bind(Triton("cpu"))

    def test_it_is_no_measure(self):
        assert Triton("cpu").untimed == "interpreted: Triton's interpreter is no measure of the kernel"

    def test_it_wants_the_variable_that_triton_reads(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(Unsupported, match="needs TRITON_INTERPRET=1"):
            Triton("cpu")

    @pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9)])
    def test_fp8_is_refused_where_the_gpu_s_conversion_is_not_exact(self, capability):
        impl = Triton("cpu")
        impl.interpreted, impl.capability = False, capability
        with pytest.raises(Unsupported, match=rf"needs compute capability 9\.0.*has {capability[0]}\."):
            law.problem("cpu", [1], kv_cache_dtype="fp8").bind(impl)


@pytest.mark.parametrize("sm_count", [1, 108, 132, 148])
@pytest.mark.parametrize("row_items", [1, 45, 92, 1024, 1920, 16384])
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 512, 65536])
def test_a_tile_is_a_power_of_two_within_a_row_and_the_grid_covers_every_item(
    num_tokens, row_items, sm_count
):
    tokens, columns = tile(num_tokens, row_items, sm_count)
    assert tokens.bit_count() == columns.bit_count() == 1
    assert columns < 2 * row_items
    assert tokens * columns in (FEW_ITEMS, TILE_ITEMS)
    assert triton.cdiv(num_tokens, tokens) * tokens >= num_tokens
    assert triton.cdiv(row_items, columns) * columns >= row_items


def test_few_tokens_make_more_programs_than_the_gpu_has_multiprocessors():
    tokens, columns = tile(512, 1024, 132)
    assert (512 // tokens) * (1024 // columns) > 132
