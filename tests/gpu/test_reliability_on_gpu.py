"""An illegal access, a lack of memory, a kernel without end or a failed capture on a GPU costs one curve."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kvexp.results import row_file
from kvexp.sweep import runner
from kvexp.sweep.job import Job
from kvexp.sweep.settings import SweepSettings
from kvexp.tracking import TrackingSettings
from tests.helpers import compose

pytestmark = pytest.mark.long

TOKENS = "workload.num_tokens=[1,16,64]"
UNTRACKED = TrackingSettings("none", None, "kvexp")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The measuring process finds tests.helpers.faulty_gpu_impls."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)


@pytest.fixture
def outcome(tmp_path):
    """Sweep a class of faulty_gpu_impls between two curves of ours, and return the rows of the three."""

    def swept(name, timeout_s=120.0, how=("timer=none", "mode=no_graph")):
        before, base, after = (
            compose.experiment(*chosen, "workload=quickstart", TOKENS, *how)
            for chosen in (
                ["impl=cuda", "workload.num_blocks=8192"],
                ["impl=torch"],
                ["impl=cuda", "workload.num_blocks=8192", "dtype=half"],
            )
        )
        bad = replace(
            base, impl=replace(base.impl, name=name.lower(), target=f"tests.helpers.faulty_gpu_impls.{name}")
        )
        home = tmp_path / "2026-11-21" / "10-00-00-000000"
        curves = (before, bad, after)
        jobs = [Job(curve, home / str(i), ("impl=cuda",)) for i, curve in enumerate(curves)]
        assert runner.run(jobs, SweepSettings(UNTRACKED, timeout_s), "") == 1
        return [row_file.read(job.folder) for job in jobs]

    return swept


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Wild", "illegal memory access"),
        ("Asserting", "assert"),
        ("Greedy", "out of memory"),
        ("Endless", "the point did not end within 10 s, so its process was killed"),
    ],
)
def test_the_worst_fails_its_points_and_the_curves_around_it_are_right_in_whichever_process(
    outcome, name, words
):
    before, bad, after = outcome(name, timeout_s=10.0 if name == "Endless" else 120.0)
    assert [row["status"] for row in before + after] == ["verified"] * 6
    assert [row["status"] for row in bad] == ["verified", "failed", "failed"]
    assert words in bad[1]["reason"]
    assert name != "Wild" or words in bad[2]["reason"]


@pytest.mark.alone
def test_a_call_that_cannot_be_captured_leaves_the_next_curve_all_memory(outcome):
    before, bad, after = outcome("Waiting", how=())
    assert [row["status"] for row in before + bad + after] == ["ok"] * 4 + ["failed"] * 2 + ["ok"] * 3
    assert "captur" in bad[1]["reason"]
    # The cache of the curve between them takes 268 MB.
    first, last = (curve[0]["memory_used_bytes"] for curve in (before, after))
    assert last == pytest.approx(first, abs=100e6)
