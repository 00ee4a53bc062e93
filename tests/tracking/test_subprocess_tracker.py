import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from mlflow import MlflowClient

from kvexp.errors import TrackingError
from kvexp.tracking import settings, subprocess_tracker
from kvexp.tracking.subprocess_tracker import SubprocessTracker
from tests.helpers.processes import ended


@pytest.fixture
def remote():
    made = SubprocessTracker()
    yield made
    made.close()


@pytest.fixture(scope="module")
def connected(store):
    """One process for the tests that leave it alive."""
    made = SubprocessTracker()
    made.connect(store)
    yield made.wait()
    made.close()


def test_another_process_sends_a_sweep_as_this_one_would(
    connected, sweep, job, measure, experiment, tmp_path, request
):
    name = request.node.name
    connected.start_sweep(name, "python -m kvexp impl=cuda")
    rows = measure("skipped")
    folder = job(rows)
    assert connected.missing(name, [folder]) == [folder]
    connected.log_curve(folder, experiment.impl.target, rows)
    connected.end_sweep("FINISHED")
    assert connected.missing(name, [folder]) == []
    assert connected.lacks_report(name)
    (tmp_path / "report.md").write_text("# Title\nSaid.\n")
    (tmp_path / "report.html").write_text("page")
    connected.log_report(name, tmp_path)
    assert not connected.lacks_report(name)
    parent, child = sweep(name)
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.metrics["points_ok"] == 15
    assert parent.data.tags["kvexp.pid"] == str(connected._process.pid)


def test_a_curve_is_sent_while_its_sender_goes_on(connected, job, measure, experiment, request):
    connected.start_sweep(request.node.name, "python -m kvexp impl=cuda")
    connected.settle()
    rows = measure("skipped")
    folders = [job(rows, number) for number in (0, 1)]
    os.kill(connected._process.pid, signal.SIGSTOP)
    goes_on = threading.Timer(20, os.kill, (connected._process.pid, signal.SIGCONT))
    goes_on.start()
    connected.log_curve(folders[0], experiment.impl.target, rows)
    assert goes_on.is_alive()
    goes_on.cancel()
    os.kill(connected._process.pid, signal.SIGCONT)
    connected.log_curve(folders[1], experiment.impl.target, rows)
    connected.settle()
    assert connected.missing(request.node.name, folders) == []


def test_it_is_ready_when_it_has_answered_what_it_was_asked(remote, store, request):
    assert remote.ready()
    os.kill(remote._process.pid, signal.SIGSTOP)
    remote.connect(store)
    assert not remote.ready()
    os.kill(remote._process.pid, signal.SIGCONT)
    connected = remote.wait()
    assert connected.ready()
    os.kill(remote._process.pid, signal.SIGSTOP)
    connected.start_sweep(request.node.name, "python -m kvexp")
    assert not connected.ready()
    os.kill(remote._process.pid, signal.SIGCONT)
    connected.settle()
    assert connected.ready()


def test_a_curve_is_not_stored_of_a_sweep_that_could_not_begin(
    connected, sweep, job, measure, experiment, request
):
    """It may be on its way before that is known; and what was begun before is another sweep."""
    name, rows = request.node.name, measure("skipped")
    connected.start_sweep("another one", "python -m kvexp")
    connected.settle()
    connected.start_sweep(name, "python -m kvexp", began_ms=[1])  # which the database refuses
    connected._send("log_curve", job(rows), experiment.impl.target, rows)
    for why in ("cannot be used", "it has no run of the sweep"):
        with pytest.raises(TrackingError, match=why):
            connected.settle()
    assert sweep(name) == []
    assert len(sweep("another one")) == 1


def test_an_answer_that_an_interrupt_left_is_not_taken_for_the_next(connected, sweep, request):
    name = request.node.name
    connected._send("start_sweep", name, "")
    assert connected.missing(name, []) == []
    connected.end_sweep("KILLED")
    (parent,) = sweep(name)
    assert parent.info.status == "KILLED"


def test_trouble_crosses_whole_and_a_database_that_a_dead_process_made_in_part_is_made_anew(
    remote, tmp_path, job, measure, experiment
):
    remote.connect(settings("server", "http://me:secret@127.0.0.1:9", None, "kvexp", {}))
    with pytest.raises(
        TrackingError, match=r"the tracking store http://me:\*\*\*@127\.0\.0\.1:9 cannot"
    ) as raised:
        remote.wait()
    assert raised.value.unreachable

    for name in ("mlflow.db.new", "mlflow.db.new-journal"):
        (tmp_path / name).write_text("a part")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    remote.connect(settings("local", uri, None, "kvexp", {}))
    connected, rows = remote.wait(), measure("skipped")
    assert [file.name for file in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]

    # A curve that does not arrive is said when that is asked, and nothing more is begun.
    connected.log_curve(job(rows), experiment.impl.target, rows)  # of a sweep that nobody has begun
    with pytest.raises(TrackingError):
        connected.settle()
    connected.settle()
    connected.log_curve(job(rows), experiment.impl.target, rows)
    with pytest.raises(TrackingError):
        connected.start_sweep("a", "python -m kvexp")
    connected.settle()
    client = MlflowClient(tracking_uri=uri)
    (stored,) = client.search_experiments(filter_string="name = 'kvexp'")
    assert client.search_runs([stored.experiment_id]) == []
    connected.start_sweep("a", "python -m kvexp")
    connected.settle()
    assert len(client.search_runs([stored.experiment_id])) == 1


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_process_that_was_killed_is_a_store_out_of_reach(remote, when):
    found = settings("local", "sqlite:////nowhere/mlflow.db", None, "kvexp", {})
    if when == "before":
        remote._process.kill()
        remote._process.wait()
    remote.connect(found)
    remote._process.kill()
    with pytest.raises(
        TrackingError, match=r"sqlite:////nowhere/mlflow\.db cannot be used: its process"
    ) as raised:
        remote.wait()
    assert raised.value.unreachable


def test_it_ends_at_once_where_nothing_was_asked(monkeypatch):
    monkeypatch.setattr(subprocess_tracker, "END_SECONDS", 600)  # no patience is spent
    made = SubprocessTracker()
    begin = time.monotonic()
    made.close()
    assert time.monotonic() - begin < 60
    assert not psutil.pid_exists(made._process.pid)


def test_it_ends_soon_where_a_server_never_answers(monkeypatch):
    monkeypatch.setattr(subprocess_tracker, "END_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        made = SubprocessTracker()
        made.connect(settings("server", f"http://127.0.0.1:{silent.getsockname()[1]}", None, "kvexp", {}))
        begin = time.monotonic()
        made.close()
    assert time.monotonic() - begin < 5  # MLflow's own patience is longer
    assert not psutil.pid_exists(made._process.pid)


def test_it_ends_with_its_parent():
    parent = """
import os, signal
from kvexp.tracking.subprocess_tracker import SubprocessTracker

made = SubprocessTracker()
print(made._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    ended(int(done.stdout))


def test_signals_to_all_processes_of_a_sweep_leave_the_store_to_its_parent(connected, request):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(connected._process.pid, number)
    connected.start_sweep(request.node.name, "python -m kvexp")
    connected.end_sweep("KILLED")
    assert connected.missing(request.node.name, []) == []
