"""The script that says how far processes differ; what it says of a GPU is in docs/results."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from kvexp import cli
from tests.gpu import repeatability


def test_the_spread_is_of_the_processes_medians():
    assert repeatability.spread([10.0, 10.5, 9.9, 10.0, 10.1]) == pytest.approx(0.06)


def test_every_process_measures_every_point(tmp_path, monkeypatch):
    run = subprocess.run

    def run_here(command, **options):
        if command[:3] != [sys.executable, "-m", "kvexp"]:
            return run(command, **options)
        return SimpleNamespace(returncode=cli.dispatch(command[3:]))

    monkeypatch.setattr(subprocess, "run", run_here)
    overrides = ("impl=torch", "workload=tiny", "timer.max_seconds=0.05", "isolation=inline")
    found = repeatability.medians(overrides, tmp_path)
    assert list(found) == [1, 3, 16, 50]
    assert all(len(latencies) == 5 and min(latencies) > 0 for latencies in found.values())


def test_a_process_that_fails_is_not_left_out(tmp_path):
    with pytest.raises(RuntimeError, match="process 0 ended with 2"):
        repeatability.medians(("impl=nobody", "isolation=inline"), tmp_path)


@pytest.mark.parametrize(
    ("latencies", "code", "said"), [([1.0, 1.04], 0, ""), ([1.0, 1.06], 1, "  above 5 %")]
)
def test_the_exit_code_says_whether_the_promise_holds(monkeypatch, capsys, latencies, code, said):
    monkeypatch.setattr(repeatability, "medians", lambda *_: {64: latencies})
    assert repeatability.main([]) == code
    assert capsys.readouterr().out.rstrip().endswith("%" + said)
