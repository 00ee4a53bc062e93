import shlex
import signal

import psutil
import pytest

from kvexp.errors import WorkerDied
from kvexp.sweep import prestart
from kvexp.sweep.prestart import Prestart
from kvexp.sweep.subprocess_worker import Worker
from tests.helpers.processes import ended
from tests.reliability.conftest import Place


@pytest.mark.parametrize(
    ("typed", "measures", "tracks"),
    [
        ("", True, True),
        ("impl=torch -m dtype=half,float", True, True),
        ("--config-dir=mine impl=torch", True, True),
        ("impl=torch tracking=none", True, False),
        ("impl=torch isolation=inline", False, True),
        ("~experiment impl=torch", True, True),
        ("report", False, False),
        ("gate impl=torch", False, False),
        ("--help", False, False),
        ("--version", False, False),
        ("impl=torch --cfg job", False, False),
        ("impl=torch --cfg=job", False, False),
        ("-i impl=torch", False, False),
        ("--hydra-help", False, False),
        ("-sc install=bash", False, False),
    ],
)
def test_what_is_started_follows_from_what_is_typed(monkeypatch, typed, measures, tracks):
    monkeypatch.setattr(prestart, "Prestart", lambda *asked: asked)
    assert prestart.start_for(shlex.split(typed)) == (measures, tracks)


def test_both_processes_end_with_the_block_whether_they_are_ready_or_not():
    with Prestart(True, True) as started:
        pids = [started._child.process.pid, started.get_tracker()._process.pid]
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize(("measures", "tracks"), [(True, False), (False, True), (True, True)])
def test_what_is_not_needed_after_all_ends_before_anything_is_measured(measures, tracks):
    with Prestart(True, True) as started:
        pids = [started._child.process.pid, started.get_tracker()._process.pid]
        started.keep(measures, tracks)
        assert [psutil.pid_exists(pid) for pid in pids] == [measures, tracks]


def test_a_store_that_was_not_expected_is_begun_when_it_is_wanted():
    with Prestart(False, False) as started:
        pid = started.get_tracker()._process.pid
        assert started.get_tracker()._process.pid == pid
    assert not psutil.pid_exists(pid)


def test_the_measuring_process_is_given_away_once_and_told_its_device_then():
    with Prestart(True, False) as started:
        child = started.take_child()
        assert started.take_child() is None
    with Worker("cpu", child=child) as worker:
        worker.wait()
        assert worker.device == "cpu"
        assert worker._process is child.process


def test_a_device_may_be_told_to_a_process_that_has_died():
    with Prestart(True, False) as started:
        child = started.take_child()
    child.process.kill()
    child.process.wait()
    with Worker("cpu", child=child) as worker, pytest.raises(WorkerDied, match="SIGKILL"):
        worker.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_ended_while_it_is_composed_leaves_no_process(tmp_path, number):
    process = Place(tmp_path).start("impl=torch", "workload=tiny", "workload.num_heads=range(1,200)")
    assert "composing" in process.stdout.readline()
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    for child in children:
        ended(child.pid)
