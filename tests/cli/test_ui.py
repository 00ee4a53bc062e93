"""`kvexp ui` says where the runs are and becomes MLflow's server; tests/browser opens its pages."""

import os
import sqlite3

import pytest

from kvexp.tracking import TrackingSettings, connect


@pytest.fixture
def served(monkeypatch):
    """What would have been started, once something is."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    return calls


def test_without_runs_it_says_what_makes_some(typed):
    outcome = typed("ui")
    assert outcome.code == 2
    assert outcome.err == "kvexp: there are no runs yet (mlruns/mlflow.db is missing); make run makes some\n"


def test_a_file_that_is_no_store_is_refused(typed, elsewhere, served):
    (elsewhere / "mlruns").mkdir()
    (elsewhere / "mlruns" / "mlflow.db").write_text("no database" * 100)
    outcome = typed("ui")
    assert (outcome.code, served) == (2, [])
    assert "mlruns/mlflow.db is no store of runs (file is not a database)" in outcome.err


def test_it_names_the_newest_sweeps_page_of_each_experiment(typed, elsewhere, served):
    for name in ("kvexp", "other"):
        connect(TrackingSettings("local", f"sqlite:///{elsewhere}/there/mlflow.db", name))
    outcome = typed("ui", "there", "--port", "5001")
    view = "runs?workflowType=machine_learning&viewStateShareKey=kvexp-last"
    assert outcome.out.splitlines()[:2] == [
        f"kvexp: http://127.0.0.1:5001/#/experiments/1/{view}",
        f"other: http://127.0.0.1:5001/#/experiments/2/{view}",
    ]
    ((_, command, environment),) = served
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert f"sqlite:///{elsewhere}/there/mlflow.db" in command
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_of_a_store_without_views_it_names_the_whole_ui(typed, elsewhere, served):
    (elsewhere / "mlruns").mkdir()
    with sqlite3.connect(elsewhere / "mlruns" / "mlflow.db") as database:
        database.execute("create table experiments (experiment_id, name, lifecycle_stage)")
        database.execute("create table experiment_tags (experiment_id, key, value)")
    outcome = typed("ui")
    assert outcome.out.splitlines()[0] == "http://127.0.0.1:5000"
    assert len(served) == 1
