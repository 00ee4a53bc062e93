"""Actors of a Ray cluster measure; here its GPUs are made up, and a process measures nothing."""

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import psutil
import pytest

from kvexp import cli
from kvexp.results import row_file
from kvexp.sweep import runner, subprocess_worker
from kvexp.sweep.progress import CurveProgress
from kvexp.sweep.ray_cluster import places
from kvexp.sweep.settings import SweepSettings
from kvexp.tracking import TrackingSettings
from tests.helpers import compose
from tests.helpers.processes import ended, list_marked

SETTINGS = SweepSettings(TrackingSettings("none", None, "kvexp"))
RAY = ("hydra/launcher=ray", "tracking=none", "workload=tiny", "impl=torch")

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.long]

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'kvexp[ray]')"
)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node with two GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex())
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr(subprocess_worker, "CHILD", "tests.helpers.light_child")
        made = start_cluster()
        yield made
        made.shutdown()


def start_cluster():
    """Start a head with two GPUs, whose loss is noticed within seconds."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    quick = {
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 2,
        "gcs_rpc_server_reconnect_timeout_s": 5,
    }
    head = {"num_cpus": 2, "num_gpus": 2, "include_dashboard": False, "_system_config": quick}
    return cluster_utils.Cluster(initialize_head=True, head_node_args=head)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def found(cluster):
    """The places of the two GPUs."""
    return list_gpus(cluster)


def list_gpus(cluster):
    with ExitStack() as stack:
        curve = compose.experiment("workload=tiny")
        return places.list_places(cluster.address, None, [curve], "process", stack)


def rows_of(jobs):
    return row_file.read(jobs[0].folder.parent)


def count_points(rows):
    return Counter((row["seed"], row["num_tokens"]) for row in rows)


def on_first_row(monkeypatch, act):
    """Has `act` called with the first row of the sweep, before its curve goes on."""
    rows = []

    def advance(self, row):
        rows.append(row)
        if len(rows) == 1:
            act(row)

    monkeypatch.setattr(CurveProgress, "advance", advance)
    return rows


def find_measuring(row):
    return psutil.Process(int(row["host"].rpartition(" ")[2]))


@needs_ray
def test_each_curve_is_measured_once_by_the_actor_of_a_gpu(found, jobs, monkeypatch, tmp_path):
    """The first waits for a row of the other actor."""
    other = tmp_path / "other"
    twelve = jobs({"waits": str(other)}, *[{}] * 11)
    on_first_row(monkeypatch, lambda row: other.touch())
    host = socket.gethostname()
    assert [place.name for place in found] == [f"{host} GPU 0", f"{host} GPU 1"]
    assert runner.run(twelve, SETTINGS, "", places=found) == 0
    rows = rows_of(twelve)
    assert set(count_points(rows).values()) == {1}
    assert len(rows) == 48
    assert {row["status"] for row in rows} == {"verified"}
    assert {row["device_uuid"] for row in rows} == {"0", "1"}
    assert len({row["host"] for row in rows}) == 2
    for name in {row["host"] for row in rows}:
        ended(int(name.rpartition(" ")[2]), 30)


@needs_ray
def test_a_killed_actor_costs_its_curve_and_another_one_goes_on(found, jobs, monkeypatch):
    six = jobs(*[{}] * 6)
    killed = on_first_row(monkeypatch, lambda row: find_measuring(row).parent().kill())
    assert runner.run(six, SETTINGS, "", places=found) == 1
    by_curve = [row_file.read(job.folder) for job in six]
    (hit,) = (rows for rows in by_curve if rows[0]["seed"] == killed[0]["seed"])
    assert [row["status"] for row in hit] == ["verified"] + ["failed"] * 3
    assert "The actor is dead because its worker process has died" in hit[1]["reason"]
    assert len(hit[1]["reason"].splitlines()) == 2
    others = [[row["status"] for row in rows] for rows in by_curve if rows is not hit]
    assert others == [["verified"] * 4] * 5


@needs_ray
def test_a_crash_of_the_measuring_process_reads_as_on_this_host(found, jobs):
    two = jobs({"dies": True}, {})
    assert runner.run(two, SETTINGS, "", places=found) == 1
    hit, other = (row_file.read(job.folder) for job in two)
    assert [row["status"] for row in hit] == ["verified"] + ["failed"] * 3
    assert hit[1]["reason"] == "the measuring process was ended by SIGKILL"
    assert {row["status"] for row in other} == {"verified"}


@needs_ray
def test_a_point_that_hangs_is_ended_and_says_where_it_was(found, jobs, tmp_path):
    two = jobs({"waits": str(tmp_path / "never")}, {})
    settings = replace(SETTINGS, timeout_s=2)
    assert runner.run(two, settings, "", places=found) == 1
    hit, other = (row_file.read(job.folder) for job in two)
    assert hit[0]["reason"].startswith("the point did not end within 2 s, so its process was killed;")
    assert 'light_child.py", line ' in hit[0]["reason"]
    assert {row["status"] for row in other} == {"verified"}


@needs_ray
def test_an_interrupt_leaves_no_actor(found, jobs, monkeypatch, tmp_path, capfd):
    three = jobs({}, {"waits": str(tmp_path / "never")}, {"waits": str(tmp_path / "never")})
    pids = []

    def interrupt(row):
        pids.extend([find_measuring(row).pid, find_measuring(row).ppid()])
        os.kill(os.getpid(), signal.SIGINT)

    on_first_row(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.run(three, SETTINGS, "", None, "kvexp resume=there", found)
    for pid in pids:
        ended(pid, 30)
    assert "interrupted after 1 of 12 points; this goes on: kvexp resume=there" in capfd.readouterr().err


@pytest.fixture
def interrupted(jobs, tmp_path):
    """Six curves, five of which wait until the sweep has ended, and what resumes them."""
    later = tmp_path / "later"
    six = jobs({}, *[{"waits": str(later)}] * 5)

    def resume(found):
        before = Counter(row["status"] for row in rows_of(six))
        assert 1 <= before["verified"] <= 4
        assert 1 <= before["failed"] <= 8  # of the curves that were at work
        later.touch()
        assert runner.run(six, replace(SETTINGS, resumes=True), "", places=found) == 0
        right = [row for row in rows_of(six) if row["status"] == "verified"]
        assert count_points(right) == {(seed, size): 1 for seed in range(6) for size in (1, 3, 16, 50)}

    return six, resume


@needs_ray
def test_a_lost_node_costs_its_curves_and_resuming_measures_the_rest(
    cluster, found, interrupted, monkeypatch, capfd
):
    (six, resume), node = interrupted, cluster.add_node(num_cpus=1, num_gpus=2)
    lost = [place for place in list_gpus(cluster) if place.start_child.args[0].node == node.node_id]
    on_first_row(monkeypatch, lambda row: cluster.remove_node(node, allow_graceful=False))
    assert runner.run(six, SETTINGS, "", places=lost) == 1
    err = capfd.readouterr().err
    for place in lost:
        assert f"kvexp: {place.name} is left out: the measuring process " in err, err
    assert "no place was left to measure at" in err
    resume(found)


@needs_ray
def test_a_killed_head_costs_the_curves_at_work_and_resuming_measures_the_rest(
    found, interrupted, monkeypatch, capfd
):
    (six, resume), lost = interrupted, start_cluster()
    on_first_row(monkeypatch, lambda row: lost.head_node.kill_all_processes(check_alive=False))
    assert runner.run(six, SETTINGS, "", places=list_gpus(lost)) == 1
    err = capfd.readouterr().err
    assert "no place was left to measure at" in err, err
    resume(found)


@needs_ray
def test_another_version_on_a_node_is_said_once(found, jobs, monkeypatch, capfd):
    cluster_columns = '{"torch": "1.0", "kvexp": null, "source_hash": "12"}'
    start = subprocess_worker.LineChild

    def start_elsewhere():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LIGHT_CHILD_COLUMNS", cluster_columns)
            return start("tests.helpers.light_child")

    two = jobs({}, {})
    (place, _) = found
    assert runner.run(two, SETTINGS, "", places=[replace(place, start_child=start_elsewhere)]) == 0
    err = capfd.readouterr().err
    assert err.count(f"kvexp: {place.name} has torch 1.0 and not ") == 1
    assert err.count(f"kvexp: {place.name} has kvexp's sources of hash 12 and not ") == 1
    assert {row["torch"] for row in rows_of(two)} == {"1.0"}


@needs_ray
def test_a_command_measures_on_the_cluster(cluster, elsewhere, capfd):
    assert cli.dispatch([*RAY, f"hydra.launcher.address={cluster.address}", "dtype=half,bfloat16"]) == 0
    (sweep,) = elsewhere.glob("multirun/*/*")
    rows = row_file.read(sweep)
    assert {row["device"] for row in rows} == {"cuda:0"}
    assert len(rows) == 8
    assert "8/8 points" in capfd.readouterr().err


@needs_ray
def test_a_cluster_that_the_sweep_starts_ends_with_it(elsewhere, capfd, monkeypatch):
    monkeypatch.setattr(subprocess_worker, "CHILD", "tests.helpers.light_child")
    monkeypatch.setenv("MARK", str(elsewhere))
    left = []

    def look(row):
        left[:] = list_marked(str(elsewhere))

    on_first_row(monkeypatch, look)
    assert cli.dispatch([*RAY, "device=cpu", "hydra.launcher.workers=2", "dtype=half,bfloat16"]) == 0
    assert len(left) > 6  # its own two, and Ray's
    for pid in {*left, *list_marked(str(elsewhere))}:
        ended(pid, 30)
    (sweep,) = elsewhere.glob("multirun/*/*")
    rows = row_file.read(sweep)
    assert [(row["device"], row["status"]) for row in rows] == [("cpu", "verified")] * 8
    assert "2 processes measure on this CPU at the same time" in capfd.readouterr().err


@needs_ray
def test_a_cluster_that_a_sweep_started_ends_when_that_is_killed(elsewhere):
    words = [*RAY, "device=cpu", "timer=none", "hydra.launcher.workers=2", "workload.seed=range(1,30)"]
    command, environ = [sys.executable, "-m", "kvexp", *words], os.environ | {"MARK": str(elsewhere)}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert any("verified" in line for line in process.stderr)
        left = list_marked(str(elsewhere))
        assert len(left) > 6
        process.kill()
        for pid in left:
            ended(pid, 60)


@pytest.fixture
def installed(monkeypatch):
    """Ray passes for installed."""
    module = ModuleType("ray")
    module.__spec__ = ModuleSpec("ray", None)
    monkeypatch.setitem(sys.modules, "ray", module)


def test_without_ray_a_sentence_says_what_to_install(elsewhere, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.dispatch([*RAY]) == 2
    assert capsys.readouterr().err == "kvexp: hydra/launcher=ray needs Ray; pip install 'kvexp[ray]'\n"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["hydra.launcher.address=127.0.0.1:1"],
            "hydra.launcher.address=127.0.0.1:1 cannot be reached ([Errno 111] Connection refused)",
        ),
        (
            ["hydra.launcher.address='ray://head:10001'"],
            "hydra.launcher.address must be HOST:PORT of a cluster's head, auto or null, not "
            "'ray://head:10001'; kvexp is typed on a machine of the cluster",
        ),
        (["hydra.launcher.workers=0"], "hydra.launcher.workers must be a number from 1 to 1024, not 0"),
        (
            ["hydra.launcher.workers=2"],
            "hydra.launcher.workers=2 needs device=cpu, not device=auto; "
            "without it the cluster's GPUs measure",
        ),
        (
            ["device=cpu"],
            "device=cpu and hydra/launcher=ray both say where to measure; leave device= out for the "
            "cluster's GPUs, or type device=cpu hydra.launcher.workers=2",
        ),
        (
            ["isolation=inline"],
            "isolation=inline measures in this process, and hydra/launcher=ray starts others; "
            "leave one of them out",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(elsewhere, installed, capsys, typed, said):
    assert cli.dispatch([*RAY, *typed]) == 2
    assert capsys.readouterr().err == f"kvexp: {said}\n"
    assert not list(elsewhere.iterdir())


def test_something_else_behind_the_address_is_one_sentence(elsewhere, capsys, monkeypatch):
    """Also where it answers nothing."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'kvexp[ray]')")
    monkeypatch.setattr(places, "CONNECT_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert cli.dispatch([*RAY, f"hydra.launcher.address={address}"]) == 2
    said = f"kvexp: hydra.launcher.address={address} is no cluster that Ray can join within 3 s\n"
    assert capsys.readouterr().err == said
