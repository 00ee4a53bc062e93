"""`kvexp sync` sends what the store has missed exactly once, however often it is broken off."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kvexp.host import file_lock
from kvexp.results import row_file
from kvexp.results import sweep_dir as sweep_folder
from tests.helpers import mlflow_server
from tests.helpers.inline_tracker import InlineTracker, used_by_commands

pytestmark = pytest.mark.long

CURVES = 12


@pytest.fixture
def sweep(place, untracked):
    """The folder of an untracked sweep of many curves: one that was measured, and copies of it."""
    home = place.copy(untracked)
    for number in range(1, CURVES):
        shutil.copytree(home / "0", home / str(number))
    return home


def server(folder, port):
    """MLflow's own server over a database in the folder."""
    stored = ("--backend-store-uri", f"sqlite:///{folder}/server.db")
    return mlflow_server.serve(
        ("server", *stored, "--artifacts-destination", str(folder / "files")), folder, port
    )


@pytest.fixture
def uri(database):
    """The address of the store where kvexp is typed, which is ready and empty."""
    return f"sqlite:///{database}"


@pytest.fixture
def port():
    return mlflow_server.free_port()


def curves(uri):
    """How often each curve is in the store, and what the runs' statuses are."""
    runs = search(MlflowClient(tracking_uri=uri))
    names = [run.data.tags["kvexp.curve"] for run in runs if "kvexp.curve" in run.data.tags]
    return Counter(names), Counter(run.info.status for run in runs)


def search(client):
    """Every run of the store."""
    found = client.search_experiments(filter_string="name = 'kvexp'")
    return client.search_runs([found[0].experiment_id], max_results=1000) if found else []


def change_rows(job, columns, lines):
    """The columns of those lines of the curve's file, counted from 1, are others."""
    file = job / row_file.ROWS
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        rows[line - 1].update(columns)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def check_once(uri, sweep):
    """Each curve is there once, and so is the sweep; nothing is still running."""
    counts, statuses = curves(uri)
    sweep_id = "/".join(sweep.parts[-2:])
    assert counts == Counter(f"{sweep_id}/{number}" for number in range(CURVES))
    assert statuses.total() == CURVES + 1
    assert statuses["RUNNING"] == 0


def wait_for_curves(uri, number, process):
    """Returns when the store has so many curves' runs, whole or not, or the process has ended."""
    while process.poll() is None:
        if sum(curves(uri)[0].values()) >= number:
            return
        time.sleep(0.05)  # who asks without a pause keeps the store from whoever fills it


@pytest.mark.usefixtures("inline_tracker", "database")
def test_what_was_not_tracked_is_sent_once_and_never_again(place, typed, sweep):
    first, second = typed("sync"), typed("sync", str(sweep))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert first.stdout.startswith(f"{CURVES} curves sent, 0 were there: sqlite:///")
    assert second.stdout.startswith(f"0 curves sent, {CURVES} were there")
    check_once(f"sqlite:///{place.folder}/mlruns/mlflow.db", sweep)


@pytest.mark.usefixtures("inline_tracker")
def test_curves_that_cannot_be_sent_are_named_and_stop_no_other(place, typed, sweep, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")  # as on an older server
    for number in range(6, CURVES):
        shutil.rmtree(sweep / str(number))
    later = shutil.copytree(sweep, sweep.with_name("later"))
    (later / sweep_folder.COMMAND).unlink()
    text = "-Dname=value " * 500
    for number, columns, lines in (
        (1, {"started_at": "noon"}, [2]),
        (2, {"reason": "\ud800"}, [3]),
        (3, {"impl_options": json.dumps({"a*b": 1})}, [1, 2, 3, 4]),
        (4, {"impl_options": json.dumps({"flags": text}), "reason": text, "extra": text}, [1, 2, 3, 4]),
    ):
        change_rows(sweep / str(number), columns, lines)
    command = json.loads((sweep / sweep_folder.COMMAND).read_text())
    command["overrides"].append(f"impl.flags={text}")
    (sweep / sweep_folder.COMMAND).write_text(json.dumps(command))

    done = typed("sync")
    assert (done.returncode, done.stdout.partition(":")[0]) == (1, "9 curves sent, 0 were there, 3 left out")
    said = [line for line in done.stderr.splitlines() if line.startswith("left out: ")]
    for line, number, why in (
        (said[0], 1, ", line 2: started_at cannot be 'noon'; it must be a time in ISO 8601"),
        (said[1], 2, ", line 3: reason cannot be '\\ud800'; it must be a text without lone surrogates"),
        (said[2], 3, ', lines 1 to 4: MLflow refuses the curve: Invalid value "option.a*b"'),
    ):
        assert line.startswith(f"left out: {sweep / str(number) / row_file.ROWS}{why}")
    assert len(said) == 3
    assert "Traceback" not in done.stderr

    client = MlflowClient(tracking_uri=uri)
    runs = {run.data.tags.get("kvexp.curve", run.info.run_name): run for run in search(client)}
    first, second = ("/".join(home.parts[-2:]) for home in (sweep, later))
    whole = {first, *(f"{first}/{n}" for n in (0, 4, 5)), second, *(f"{second}/{n}" for n in range(6))}
    assert {name for name, run in runs.items() if run.info.status == "FINISHED"} == whole
    assert {name: run.info.status for name, run in runs.items() if name not in whole} == {
        f"{first}/3": "FAILED"
    }
    cut = runs[f"{first}/4"]
    assert cut.data.params["option.flags"] == cut.data.tags["reason"] == cut.data.tags["extra"] == text[:5000]
    assert len(runs[first].data.tags["command"]) == 5000
    sent = client.download_artifacts(cut.info.run_id, row_file.ROWS, str(place.folder))
    assert [row["extra"] for row in row_file.read(Path(sent))] == [text] * 4
    again = typed("sync")
    assert (again.returncode, again.stdout.partition(":")[0]) == (
        1,
        "0 curves sent, 9 were there, 3 left out",
    )


@pytest.mark.usefixtures("inline_tracker")
def test_two_syncs_at_once_leave_each_curve_once(place, typed, sweep, uri):
    other = place.start("sync")
    wait_for_curves(uri, 1, other)
    done = typed("sync")
    out, err = other.communicate(timeout=300)
    other = subprocess.CompletedProcess((), other.returncode, out, err)
    for one in (done, other):
        # The later one finds all of them there, or the sweep's folder held by the earlier one.
        assert (one.returncode == 0) or f"{sweep}: left out, since its sweep is at work" in one.stderr, one
    sent = [int(one.stdout.split(" ", 1)[0]) for one in (done, other)]
    assert sorted(sent) == [0, CURVES]
    check_once(uri, sweep)


@pytest.mark.usefixtures("inline_tracker")
def test_a_sync_that_is_killed_in_its_middle_is_completed_by_the_next(place, typed, sweep, uri):
    process = place.start("sync")
    wait_for_curves(uri, 4, process)
    process.kill()
    process.communicate()
    done = typed("sync")
    assert done.returncode == 0, done.stderr
    check_once(uri, sweep)


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_a_sync_gets_each_curve_once_when_it_is_back(
    place, typed, sweep, port, tmp_path, monkeypatch
):
    # A busy machine's server is asked once.
    monkeypatch.setattr(type(place), "environment", place.environment | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    address = f"http://127.0.0.1:{port}"
    database = f"sqlite:///{tmp_path}/server.db"
    with server(tmp_path, port) as process:
        sending = place.start("sync", "--to", address)
        wait_for_curves(database, 3, sending)
        mlflow_server.stop(process)
        _, err = sending.communicate(timeout=60)
    assert sending.returncode == 1
    assert f"kvexp: the tracking store {address} cannot be used" in err
    assert "sync again later" in err
    assert 0 < sum(curves(database)[0].values()) < CURVES
    with server(tmp_path, port), used_by_commands(InlineTracker()):
        done = typed("sync", "--to", address)
    assert done.returncode == 0, done.stderr
    check_once(database, sweep)


def test_a_request_that_a_slow_server_answers_too_late_leaves_no_second_run(
    place, typed, sweep, port, tmp_path
):
    """The server is stopped for longer than it is waited for, and then does what it was asked."""
    address, database = f"http://127.0.0.1:{port}", f"sqlite:///{tmp_path}/server.db"
    with server(tmp_path, port) as process:
        sending = place.start("sync", "--to", address)
        wait_for_curves(database, 3, sending)
        os.killpg(process.pid, signal.SIGSTOP)
        _, err = sending.communicate(timeout=60)
        os.killpg(process.pid, signal.SIGCONT)
        assert sending.returncode == 1
        assert f"kvexp: the tracking store {address} cannot be used" in err
        with used_by_commands(InlineTracker()):
            done = typed("sync", "--to", address)
    assert done.returncode == 0, done.stderr
    check_once(database, sweep)


@pytest.mark.usefixtures("database", "inline_tracker")
def test_a_sweep_that_is_at_work_is_left_out(typed, sweep):
    with file_lock.locked(sweep / sweep_folder.LOCK):
        done = typed("sync")
    assert done.returncode == 1
    assert f"{sweep}: left out, since its sweep is at work" in done.stderr


def test_a_folder_without_a_sweep_and_a_flag_that_is_not_there_are_refused(typed):
    for words, complaint in ((["sync"], "holds no sweep"), (["sync", "--from", "x"], "--from")):
        done = typed(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("kvexp: ")
        assert complaint in done.stderr
