"""An illegal access, a lack of memory, a kernel without end or a failed capture on a GPU costs one curve."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kvexp.results import row_file
from kvexp.sweep import runner
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
        jobs = [runner.Job(curve, home / str(i), ("impl=cuda",)) for i, curve in enumerate(curves)]
        assert runner.run(jobs, SweepSettings(UNTRACKED, timeout_s), "") == 1
        return [row_file.read(job.folder) for job in jobs]

    return swept


def check_others(before, after):
    """The curves around the wrong one are right, in whichever process."""
    for curve in (before, after):
        assert [row["status"] for row in curve] == ["verified"] * 3


def test_an_illegal_access_fails_its_curve_and_the_next_has_a_fresh_process(outcome):
    before, bad, after = outcome("Wild")
    check_others(before, after)
    assert [row["status"] for row in bad] == ["verified", "failed", "failed"]
    assert "illegal memory access" in bad[1]["reason"]
    assert "illegal memory access" in bad[2]["reason"]


def test_a_device_assert_fails_its_curve_and_the_next_has_a_fresh_process(outcome):
    before, bad, after = outcome("Asserting")
    check_others(before, after)
    assert [row["status"] for row in bad] == ["verified", "failed", "failed"]
    assert "assert" in bad[1]["reason"]


def test_running_out_of_memory_fails_only_the_points_that_need_it(outcome):
    before, bad, after = outcome("Greedy")
    check_others(before, after)
    assert [row["status"] for row in bad] == ["verified", "failed", "failed"]
    assert "out of memory" in bad[1]["reason"]


def test_a_kernel_without_end_is_killed_and_the_gpu_is_free_again(outcome):
    before, bad, after = outcome("Endless", timeout_s=10.0)
    check_others(before, after)
    assert [row["status"] for row in bad] == ["verified", "failed", "failed"]
    assert bad[1]["reason"].startswith("the point did not end within 10 s, so its process was killed")


@pytest.mark.alone
def test_a_call_that_cannot_be_captured_leaves_the_next_curve_all_memory(outcome):
    before, bad, after = outcome("Waiting", how=())
    assert [row["status"] for row in before + bad + after] == ["ok"] * 4 + ["failed"] * 2 + ["ok"] * 3
    assert "captur" in bad[1]["reason"]
    # The cache of the curve between them takes 268 MB.
    first, last = (curve[0]["memory_used_bytes"] for curve in (before, after))
    assert last == pytest.approx(first, abs=100e6)
