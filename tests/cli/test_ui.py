"""`kvexp ui` says where the runs are and runs MLflow's server; tests/browser opens its pages."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing

import psutil
import pytest

from kvexp.cli.commands import ui
from kvexp.tracking import TrackingSettings, connect
from tests.helpers import mlflow_server


@pytest.fixture
def served(monkeypatch):
    """The commands of servers, of which none is started."""
    commands = []
    monkeypatch.setattr(ui, "_serve", lambda command: commands.append(command) or 0)
    return commands


@pytest.fixture
def port():
    """A port that is free now."""
    return mlflow_server.free_port()


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


def test_a_store_of_spoilt_names_is_refused(typed, elsewhere, served):
    (elsewhere / "mlruns").mkdir()
    with closing(sqlite3.connect(elsewhere / "mlruns" / "mlflow.db")) as database, database:
        database.execute("create table experiments (name)")
        database.execute("pragma writable_schema = 1")
        database.execute("update sqlite_master set name = cast(x'e6' as text), sql = 'nonsense'")
    outcome = typed("ui")
    assert (outcome.code, served, outcome.err.count("\n")) == (2, [], 1)
    assert "mlruns/mlflow.db is no store of runs ('utf-8' codec can't decode" in outcome.err


def test_it_names_the_newest_sweeps_page_of_each_experiment(typed, elsewhere, served, port):
    for name in ("kvexp", "other"):
        connect(TrackingSettings("local", f"sqlite:///{elsewhere}/there/mlflow.db", name))
    outcome = typed("ui", "there", "--port", str(port))
    view = "runs?workflowType=machine_learning&viewStateShareKey=kvexp-last"
    assert outcome.out.splitlines()[:2] == [
        f"kvexp: http://127.0.0.1:{port}/#/experiments/1/{view}",
        f"other: http://127.0.0.1:{port}/#/experiments/2/{view}",
    ]
    (command,) = served
    assert command[:2] == ["mlflow", "ui"]
    assert f"sqlite:///{elsewhere}/there/mlflow.db" in command


def test_of_a_store_without_views_it_names_the_whole_ui(typed, elsewhere, served, port):
    (elsewhere / "mlruns").mkdir()
    with sqlite3.connect(elsewhere / "mlruns" / "mlflow.db") as database:
        database.execute("create table experiments (experiment_id, name, lifecycle_stage)")
        database.execute("create table experiment_tags (experiment_id, key, value)")
    outcome = typed("ui", "--port", str(port))
    assert outcome.out.splitlines()[0] == f"http://127.0.0.1:{port}"
    assert len(served) == 1


def test_a_port_that_is_taken_or_none_is_refused(typed, elsewhere, served):
    connect(TrackingSettings("local", f"sqlite:///{elsewhere}/mlruns/mlflow.db", "kvexp"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = typed("ui", "--port", str(port))
    said = f"kvexp: port {port} cannot be used (Address already in use); type --port with another\n"
    assert outcome.err == said
    for none in ("0", "65536"):
        outcome = typed("ui", "--port", none)
        assert outcome.err == f"kvexp: --port must be a number from 1 to 65535, not {none}\n"
        assert (outcome.code, served) == (2, [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_ends_it_and_its_server_without_a_word_even_while_that_starts(elsewhere, port, number, code):
    connect(TrackingSettings("local", f"sqlite:///{elsewhere}/mlruns/mlflow.db", "kvexp"))
    process = subprocess.Popen(
        [sys.executable, "-m", "kvexp", "ui", "--port", str(port)],
        cwd=elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert [process.stdout.readline()[:6] for _ in range(2)] == ["kvexp:", "It ans"]
    while not (servers := psutil.Process(process.pid).children(recursive=True)):
        assert process.poll() is None
    os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches the whole group
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")
    assert not any(_is_alive(server) for server in servers)


def _is_alive(process):
    """Tell whether a process runs that another one waits for: once ended, it may stay a zombie."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
