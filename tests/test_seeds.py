"""What docs/seeds.md measures of the seed documents: fp8 with its scales' computation, and a static grid."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from kvexp.bench import run_curve
from kvexp.errors import Unsupported
from kvexp.results.row_file import read
from tests.helpers import compose, oracle, tiny_curve
from tests.helpers.oracle import FLASH, PAGED
from tests.helpers.seed_scales import ScalesThenWrite, write_scale

ROOT = Path(__file__).resolve().parents[1]
TORCH = {"writer": "torch"}


def outcomes(**chosen):
    made = tiny_curve.curve(how="seed_scales.ScalesThenWrite", options=TORCH, **chosen)
    return [(found.status, found.reason) for found in run_curve.run(made, {})]


def statuses(**chosen):
    return [status for status, _ in outcomes(**chosen)]


@pytest.mark.parametrize("scale", ["per_tensor", "per_head"])
@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "fp8_e5m2"])
@pytest.mark.parametrize("dtype", oracle.WIDE)
@pytest.mark.parametrize("op", [FLASH, PAGED])
def test_a_curve_of_one_point_holds_the_law(op, dtype, kv_cache_dtype, scale):
    chosen = {"op": op, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "scale": scale, "num_tokens": 16}
    assert statuses(**chosen) == ["verified"]


@pytest.mark.parametrize("chosen", [{}, {"dtype": "fp8_e4m3", "kv_cache_dtype": "fp8_e4m3"}], ids=str)
def test_a_call_that_reads_no_scale_is_skipped(chosen):
    assert outcomes(num_tokens=4, **chosen) == [
        ("skipped", "impl=scales_then_write computes scales, and this call reads none")
    ]


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("dtype", oracle.WIDE)
def test_a_scale_is_the_largest_magnitude_over_64(dtype, per_head):
    rows = torch.randn(9, 3, 40, generator=torch.Generator().manual_seed(0)).to(oracle.DTYPES[dtype])
    rows[4, 1, 7] = -9.5
    scale = torch.empty(3 if per_head else ())
    write_scale(rows, scale)
    over = (0, 2) if per_head else (0, 1, 2)
    assert torch.equal(scale, rows.float().abs().amax(over) / 64)


def test_a_static_grid_of_the_sweep_writes_as_many_tokens_as_an_exact_one():
    preset = yaml.safe_load((ROOT / "conf" / "experiment" / "seed_static_grid.yaml").read_text("utf-8"))
    params = preset["hydra"]["sweeper"]["params"]
    written = {}
    for padding in params["workload.padding"].split(","):
        made = compose.experiment(
            f"workload.num_tokens={params['workload.num_tokens']}",
            f"workload.padding={padding}",
            f"workload.padding_at={params['workload.padding_at']}",
        )
        written[float(padding)] = {case.num_tokens: case.written_tokens for case in made.cases()}
    for padding, times in ((0.75, 4), (0.9375, 16)):
        exact = {num_tokens * times for num_tokens in written[0.0]} & {*written[padding]}
        assert len(exact) >= 3
        for num_tokens in exact:
            assert written[padding][num_tokens] == written[0.0][num_tokens // times]


def test_an_unknown_writer_is_refused():
    with pytest.raises(Unsupported, match="must be one of cuda, triton, torch, not 'vllm'"):
        ScalesThenWrite("cpu", "vllm")


def test_the_command_of_the_documents_measures_it(tmp_path):
    line = "--config-dir tests/conf impl=scales_then_write kv_cache_dtype=fp8"
    assert f"`{line} " in (ROOT / "docs" / "seeds.md").read_text("utf-8")
    words = ["impl.writer=torch", "workload=tiny", "workload.num_tokens=16", "device=cpu", "tracking=none"]
    words += ["timer.max_seconds=0.05", f"hydra.sweep.dir={tmp_path}"]
    subprocess.run([sys.executable, "-m", "kvexp", *line.split(), *words], cwd=ROOT, check=True)
    assert [row["status"] for row in read(tmp_path)] == ["ok"]
