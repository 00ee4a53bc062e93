"""A store that is new, busy, locked, read-only, full, broken or away costs a warning and nothing else."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from kvexp import tracking
from kvexp.errors import TrackingError
from kvexp.results.row_file import RowFile
from kvexp.tracking import connect, settings
from kvexp.tracking.best_effort import BestEffort
from kvexp.tracking.sqlite import read_pid_namespace
from kvexp.tracking.subprocess_tracker import SubprocessTracker
from tests.helpers import bad_server, limits
from tests.helpers.inline_tracker import InlineTracker, used_by_commands

SWEEP = ("impl=torch", "layout=NHD,HND", "workload=tiny", "timer=none", "device=cpu")
pytestmark = pytest.mark.long

INLINE = (*SWEEP, "isolation=inline")
WRITERS = """
import os, sys, traceback
from kvexp import tracking
import kvexp.tracking.mlflow

uri, processes, sweeps = sys.argv[1], *map(int, sys.argv[2:])
found = tracking.settings("local", uri, None, "kvexp", {})
start, go = os.pipe()
for number in range(processes):
    if os.fork():
        continue
    os.close(go)
    os.read(start, 1)
    try:
        tracker = tracking.connect(found)
        for sweep in range(sweeps):
            tracker.start_sweep(f"{number} {sweep}", "")
            tracker.end_sweep("FINISHED")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
os.close(go)
sys.exit(any([os.wait()[1] for _ in range(processes)]))
"""
"""Processes that have imported MLflow once for all; the end of a pipe lets them go together."""


def runs(uri):
    """Every run of the store."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'kvexp'")
    return client.search_runs([experiment.experiment_id], max_results=1000)


def write_at_once(uri, processes, sweeps):
    """So many processes, let go together, have each stored so many sweeps and said nothing."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", WRITERS, uri]
    done = subprocess.run(
        [*command, str(processes), str(sweeps)], stderr=subprocess.PIPE, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = runs(uri)
    names = [f"{number} {sweep}" for number in range(processes) for sweep in range(sweeps)]
    assert sorted(run.info.run_name for run in found) == sorted(names)
    assert {run.info.status for run in found} == {"FINISHED"}


def check_untracked(done, place, complaint):
    """The sweep is whole, and the store cost it one line."""
    assert done.returncode == 0, done.stderr
    assert len(place.rows()) == 8
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("kvexp: ")]
    assert complaint in line
    (home,) = place.sweeps
    assert f"and kvexp sync {home.relative_to(place.folder)}" in line
    assert line.endswith(" sends them later")


@pytest.mark.slow
def test_sixteen_processes_that_start_at_once_on_a_missing_store_all_end_with_their_runs_stored(tmp_path):
    write_at_once(f"sqlite:///{tmp_path}/mlruns/mlflow.db", 16, 1)


@pytest.mark.slow
def test_twenty_four_writers_on_one_store_lose_nothing(database):
    write_at_once(f"sqlite:///{database}", 24, 10)


@pytest.mark.usefixtures("inline_tracker")
def test_a_locked_database_costs_a_warning(place, typed, database):
    with closing(sqlite3.connect(database)) as other:
        other.execute("begin exclusive")
        check_untracked(typed(*INLINE), place, "database is locked")
    assert runs(f"sqlite:///{database}") == []


def test_a_read_only_database_costs_a_warning(place, database):
    database.chmod(0o444)
    database.parent.chmod(0o555)
    try:
        done = place.run(*INLINE, preexec_fn=limits.obey_permissions)
    finally:
        database.parent.chmod(0o755)
    check_untracked(done, place, "cannot be")


@pytest.mark.usefixtures("inline_tracker")
def test_a_database_with_garbage_in_its_middle_costs_a_warning(place, typed, database):
    content = bytearray(database.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    database.write_bytes(content)
    check_untracked(typed(*INLINE), place, "cannot be used")


@pytest.mark.usefixtures("inline_tracker")
def test_a_full_disk_under_the_database_costs_a_warning(place, typed, database, small_disk):
    moved = small_disk(database.stat().st_size + 16384) / "mlflow.db"
    shutil.copy(database, moved)
    check_untracked(typed(*INLINE, f"tracking.uri=sqlite:///{moved}"), place, "cannot be used")


@pytest.mark.usefixtures("store")  # MLflow is imported
def test_a_server_that_never_answers_costs_fifteen_seconds_at_most():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        with pytest.raises(TrackingError) as raised:
            connect(settings("server", address, None, "kvexp", {}))
        assert raised.value.unreachable
        assert time.monotonic() - begin < 15


@pytest.fixture(scope="module")
def one_tracker():
    """One process for every server that answers at once, since it imports MLflow for seconds."""
    with closing(SubprocessTracker()) as made, pytest.MonkeyPatch.context() as patched:
        patched.setattr(made, "close", lambda: None)
        yield made
        patched.undo()


@pytest.mark.parametrize("kind", bad_server.QUICK)
def test_a_server_that_answers_badly_costs_a_line(place, typed, untracked, one_tracker, kind):
    earlier = place.copy(untracked, "../earlier/sweep")
    with bad_server.serve(kind) as (address, asked), used_by_commands(one_tracker):
        synced = typed("sync", str(earlier), "--to", address)
        swept = typed(*INLINE, "tracking=server", f"tracking.uri={address}")
    check_untracked(swept, place, f"{address} cannot be used")
    assert (synced.returncode, synced.stderr.count("\n")) == (1, 1)
    assert "sync again later" in synced.stderr
    assert "Traceback" not in swept.stderr + synced.stderr
    assert [line for line in asked if line.startswith("POST")] == []
    assert one_tracker._process.poll() is None


@pytest.mark.parametrize("kind", bad_server.SLOW)
def test_a_server_that_does_not_end_its_answer_costs_one_wait_in_all(place, typed, monkeypatch, kind):
    monkeypatch.setattr(tracking, "_ANSWER_SECONDS", 7.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
    with bad_server.serve(kind) as (address, asked):
        begin = time.monotonic()
        swept = typed(*INLINE, "tracking=server", f"tracking.uri={address}")
        # A machine may be busy.
        assert time.monotonic() - begin < 7 + 45
    check_untracked(swept, place, f"{address} cannot be used: it has not answered for 7 s")
    assert [line for line in asked if line.startswith("POST")] == []


def test_a_disk_that_hangs_under_the_store_costs_a_line_and_fifteen_seconds(
    place, typed, untracked, database
):
    """The process that writes to the store is stopped, as by the system until a network disk answers."""
    place.copy(untracked, "../earlier/sweep")
    for words in (INLINE, ("sync", "earlier")):
        with closing(SubprocessTracker()) as hung, used_by_commands(hung):
            os.kill(hung._process.pid, signal.SIGSTOP)
            begin = time.monotonic()
            done = typed(*words)
            assert time.monotonic() - begin < 15 + 45
        if words == INLINE:
            check_untracked(done, place, "cannot be used: it has not answered for 15 s")
        else:
            said = "cannot be used: it has not answered for 15 s; what is on disk stays, so sync again"
            assert (done.returncode, said in done.stderr) == (1, True)
    with used_by_commands(InlineTracker()):
        assert [typed("sync", *where).returncode for where in (["earlier"], [])] == [0, 0]
    assert {run.info.status for run in runs(f"sqlite:///{database}")} == {"FINISHED"}


@pytest.mark.usefixtures("inline_tracker")
def test_a_server_that_refuses_every_connection_costs_a_warning(place, typed):
    done = typed(*INLINE, "tracking=server", "tracking.uri=http://127.0.0.1:9")
    check_untracked(done, place, "cannot be used")


class Store:
    """Remembers what it was asked; one that `is_lost` is so from its first curve on."""

    uri, page, refused = "http://away", "", ()

    def __init__(self, is_lost=False):
        self.asked, self.is_lost = [], is_lost

    def start_sweep(self, *_):
        self.asked.append("start")

    def log_curve(self, folder, *_):
        self.asked.append(folder.name)
        if self.is_lost:
            raise TrackingError("no answer", unreachable=True)

    def settle(self):
        self.asked.append("settle")

    def end_sweep(self, status):
        self.asked.append(status)


def test_a_tracker_that_lost_its_server_is_never_asked_again(tmp_path):
    lost, said = Store(is_lost=True), []
    guarded = BestEffort(lambda: lost, tmp_path, "", False, said.append)
    guarded.start()
    for name in "abc":
        guarded.log_curve(tmp_path / name, "", [])
    guarded.end("FINISHED")
    guarded.send_report()
    assert lost.asked == ["start", "a"]
    assert len(said) == 1


def test_a_store_that_was_not_waited_for_has_the_sweep_before_its_first_curve(tmp_path):
    late = Store()
    guarded = BestEffort(lambda: late, tmp_path, "", False, late.asked.append)
    for name in "ab":
        guarded.log_curve(tmp_path / name, "", [])
    assert late.asked == ["start", "a", "b"]


def test_a_store_whose_wait_was_interrupted_is_asked_again_at_the_end(tmp_path):
    slow = Store()

    def connect_again():
        slow.asked.append("connect")
        if len(slow.asked) == 1:
            raise KeyboardInterrupt
        return slow

    guarded = BestEffort(connect_again, tmp_path, "", False, lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        guarded.log_curve(tmp_path / "a", "", [])
    guarded.start()
    guarded.end("KILLED")
    assert slow.asked == ["connect", "connect", "start", "a", "KILLED"]


def test_nobody_waits_for_a_store_that_is_not_ready_and_it_gets_every_curve_in_order(tmp_path):
    slow, ready = Store(), []
    asked = slow.asked
    guarded = BestEffort(lambda: slow, tmp_path, "", False, asked.append, ready=lambda _: bool(ready))
    for name in "ab":
        guarded.log_curve(tmp_path / name, "", [])
        guarded.poll()
    assert asked == []
    ready.append(True)
    guarded.poll()
    assert asked == ["start", "a", "b"]
    guarded.log_curve(tmp_path / "c", "", [])
    assert asked == ["start", "a", "b", "c"]
    ready.clear()
    guarded.log_curve(tmp_path / "d", "", [])
    guarded.poll()
    assert asked == ["start", "a", "b", "c"]
    guarded.start()
    assert asked == ["start", "a", "b", "c", "d"]
    guarded.settle()
    assert asked == ["start", "a", "b", "c", "d"]


def test_a_sweep_that_ends_before_its_store_was_asked_says_where_its_rows_are(tmp_path):
    said = []
    guarded = BestEffort(lambda: pytest.fail("it is asked"), tmp_path, "", False, said.append)
    guarded.end("KILLED")
    guarded.send_report()
    (line,) = said
    assert "rows are on disk" in line
    assert "kvexp sync" in line


@pytest.mark.usefixtures("inline_tracker")
def test_a_time_limit_of_mlflows_that_is_invalid_costs_a_warning(place, typed, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "soon")
    done = typed(*INLINE, "tracking=server", "tracking.uri=http://127.0.0.1:9")
    check_untracked(done, place, "MLFLOW_HTTP_REQUEST_TIMEOUT")


def test_a_variable_with_which_mlflow_cannot_be_imported_costs_a_warning(place, typed, monkeypatch):
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "BOGUS")
    check_untracked(typed(*INLINE), place, "Unknown level: 'BOGUS'")


@pytest.mark.usefixtures("inline_tracker")
@pytest.mark.parametrize("is_new", [True, False])
def test_a_folder_of_any_name_has_its_store_in_it(place, typed, store, monkeypatch, is_new):
    name = "a%2Fb" if is_new else "my%20project ${x} it's #1"
    here = place.folder / name
    here.mkdir()
    monkeypatch.chdir(here)
    if not is_new:
        shutil.copytree(store, here / "mlruns")
    done = typed(*INLINE)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        0,
        f"tracked in sqlite:///{here}/mlruns/mlflow.db",
    )
    assert sorted(path.name for path in place.folder.iterdir()) == sorted([name, "my_conf"])
    assert sorted(path.name for path in here.iterdir()) == ["mlruns", "multirun"]
    assert len(list(here.glob("multirun/*/*/*/rows.jsonl"))) == 2
    with closing(sqlite3.connect(here / "mlruns" / "mlflow.db")) as database:
        assert list(database.execute("select status, count(*) from runs group by 1")) == [("FINISHED", 3)]


@pytest.mark.usefixtures("inline_tracker")
@pytest.mark.parametrize("what", ["mlruns", "mlruns/mlflow.db", "."])
def test_a_folder_that_goes_while_a_sweep_is_measured_is_named(place, typed, database, monkeypatch, what):
    gone, append, written = place.folder / what, RowFile.append, []

    def remove_after(self, *row):
        append(self, *row)
        written.append(row)
        if len(written) == 1:
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()

    monkeypatch.setattr(RowFile, "append", remove_after)
    done = typed(*INLINE)
    assert f"/mlruns/mlflow.db cannot be used: {gone} is gone; the sweep goes on untracked, " in done.stderr
    assert "Traceback" not in done.stderr
    if what == ".":
        assert done.returncode == 1
        assert f"kvexp: {gone} is gone, so the sweep stops\nrows: lost, since {gone} is gone\n" in done.stderr
        assert done.stderr.rstrip().endswith(f"and its rows are lost, since {gone} is gone")
    else:
        assert (done.returncode, len(place.rows())) == (0, 8)
        assert "sends them later" in done.stderr


@pytest.mark.parametrize(
    "namespace",
    ["0b5e5a3e-0000-4000-8000-000000000000 {pid}", "{boot} pid:[1]", ""],
    ids=["boot", "pid", "none"],
)
def test_the_run_of_another_containers_live_sweep_is_not_ended(database, namespace):
    """It has our host's name and store, and a process number that nobody has here."""
    uri = f"sqlite:///{database}"
    tracker = connect(settings("local", uri, None, "kvexp", {}))
    tracker.start_sweep("theirs", "")
    (run,) = runs(uri)
    boot, pid = read_pid_namespace().split()
    theirs = {"kvexp.pid": "4194305", "kvexp.pid_namespace": namespace.format(boot=boot, pid=pid)}
    for tag in theirs.items():
        tracker._client.set_tag(run.info.run_id, *tag)
    other = connect(settings("local", uri, None, "kvexp", {}))
    other.missing("ours", [])
    other.start_sweep("ours", "")
    other.end_sweep("FINISHED")
    assert {run.info.run_name: run.info.status for run in runs(uri)} == {
        "theirs": "RUNNING",
        "ours": "FINISHED",
    }
    tracker._client.set_tag(run.info.run_id, "kvexp.pid_namespace", read_pid_namespace())
    other.missing("ours", [])
    assert {run.info.run_name: run.info.status for run in runs(uri)} == {
        "theirs": "KILLED",
        "ours": "FINISHED",
    }


def test_a_run_whose_number_another_process_has_now_is_closed(database):
    uri = f"sqlite:///{database}"
    tracker = connect(settings("local", uri, None, "kvexp", {}))
    tracker.start_sweep("died", "")
    (run,) = runs(uri)
    # This very process lives, but it is not the one that was started then.
    tracker._client.set_tag(run.info.run_id, "kvexp.pid_started", "1000000000")
    tracker.start_sweep("next", "")
    assert {run.info.run_name: run.info.status for run in runs(uri)} == {"died": "KILLED", "next": "RUNNING"}
    tracker.end_sweep("FINISHED")


def test_a_sweep_that_is_killed_and_resumed_has_one_run_a_sweep_and_each_row_in_one_child(
    place, typed, database
):
    slow = (
        "timer=wall_clock",
        "timer.relative_error=1e-9",
        "timer.max_samples=1000000",
        "timer.max_seconds=0.1",
    )
    words = [word for word in INLINE if word != "timer=none"]
    process = place.start(*words, *slow)
    process.stderr.readline()
    process.kill()
    process.communicate()
    (sweep,) = place.sweeps
    assert [
        run.info.status for run in runs(f"sqlite:///{database}") if "kvexp.curve" not in run.data.tags
    ] == ["RUNNING"]
    with used_by_commands(InlineTracker()):
        done = typed("resume=true")
    assert done.returncode == 0, done.stderr
    found = runs(f"sqlite:///{database}")
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "/".join(sweep.parts[-2:])
    assert parent.data.metrics["points_ok"] == 8
    assert sum(run.data.metrics["points_ok"] for run in children) == 8
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
