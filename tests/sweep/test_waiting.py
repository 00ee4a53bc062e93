"""A measuring process waits for its turn at a GPU; here the GPU is a CPU with a UUID."""

import os
import threading
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace

import pytest

from kvexp.bench import run_curve
from kvexp.errors import WorkerDied
from kvexp.gpu import lock
from kvexp.host import file_lock, process
from kvexp.op.cache_write import CacheWrite
from kvexp.results import row_file
from kvexp.sweep import curve_run, runner, subprocess_worker
from kvexp.sweep.inline_worker import InlineWorker
from kvexp.sweep.job import Job
from kvexp.sweep.settings import SweepSettings
from kvexp.sweep.subprocess_worker import Worker
from kvexp.tracking import TrackingSettings
from tests.helpers import compose
from tests.helpers.fake_gpu import UUID

ME = f"process {os.getpid()}"
TIMEOUT_S = 2.0


@pytest.fixture(autouse=True, scope="module")
def played(tmp_path_factory):
    """The measuring process passes its CPU for a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess_worker, "CHILD", "tests.helpers.fake_gpu")
        patch.setenv("KVEXP_LOCK_DIR", str(tmp_path_factory.mktemp("locks")))
        yield


def curve(target=None, mode="no_graph"):
    made = compose.experiment("workload=tiny", "impl=torch", "timer=none", "device=cpu", f"mode={mode}")
    return (replace(made, impl=replace(made.impl, target=target)) if target else made).resolve("cpu")


def statuses(points):
    return [row["status"] for row, _ in points]


@pytest.fixture
def taken():
    """This process has the turn; gives the function that ends it, late enough that a hang would be seen."""
    with ExitStack() as stack:
        stack.enter_context(lock.gpu_lock(UUID))
        timer = threading.Timer(1.5 * TIMEOUT_S, stack.close)
        stack.callback(timer.cancel)
        yield timer.start


class TestAProcessThatWaits:
    @pytest.mark.parametrize("target", [None, "tests.helpers.faulty_impls.Stuck"])
    def test_is_no_hang_and_is_watched_again_when_its_turn_has_come(self, taken, target):
        told, found = [], []

        def waits(holder):
            told.append(holder)
            if holder:
                taken()

        with Worker("cpu", TIMEOUT_S, waits) as waiting:
            waiting.wait()
            late = pytest.raises(WorkerDied, match="the point did not end within 2 s")
            with late if target else nullcontext():
                for row, _ in waiting.run(curve(target)):
                    found.append(row["status"])
        assert found == ["verified"] * (2 if target else 4)
        assert told == [ME, None]

    def test_gets_its_turn_when_the_other_s_curve_has_ended_and_when_it_is_killed(self):
        """Inline as well."""
        told = []

        def ends(holder):
            told.append(holder)
            if holder and len(told) < 4:
                assert statuses(points) == ["verified"] * 3
            elif holder:
                first.close()

        with Worker("cpu") as first, Worker("cpu", waits=ends) as second:
            first.wait()
            second.wait()
            inline = InlineWorker("cpu", ends)
            inline.wait()
            inline.environment["device_uuid"] = UUID
            for waiting in (inline, second, second):
                points = first.run(curve())
                next(points)
                waiting.open(curve())
                assert statuses(waiting.measure([1, 3])) == ["verified"] * 2
        assert told == [f"process {first._process.pid}", None] * 3


def test_a_curve_is_skipped_where_there_can_be_no_turns(monkeypatch, tmp_path):
    (tmp_path / "locks").write_text("no folder")
    monkeypatch.setenv("KVEXP_LOCK_DIR", str(tmp_path / "locks"))
    found = list(run_curve.run(curve(), {"device_uuid": UUID}))
    assert [point.status for point in found] == ["skipped"] * 4
    assert f"locking {UUID} needs files in {tmp_path / 'locks'}" in found[0].reason


def test_a_turn_ends_when_the_memory_is_given_back(monkeypatch):
    allocate, held = CacheWrite.allocate, []
    file = lock.lock_dir() / f"{UUID}.lock"

    @contextmanager
    def watched(*arguments):
        with allocate(*arguments) as memory:
            yield memory
            del memory
        held.append(file_lock.find_holder(file))

    monkeypatch.setattr(CacheWrite, "allocate", watched)
    for point in run_curve.run(curve(), {"device_uuid": UUID}):
        assert point.status == "verified"
        assert file_lock.find_holder(file) == ME
    assert held == [ME]
    assert file_lock.find_holder(file) is None


def test_a_process_of_the_sweep_that_nobody_can_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(process, "END_SECONDS", 0.1)
    settings = SweepSettings(TrackingSettings("none", None, "kvexp"), timeout_s=TIMEOUT_S)
    with closing(curve_run.WorkerSupervisor(settings, lambda _: None)) as supervisor:
        hanging = curve_run.begin(curve("tests.helpers.faulty_impls.Stuck"), supervisor)
        stuck = hanging.worker._process
        with monkeypatch.context() as unkillable:
            for how in ("kill", "send_signal"):
                unkillable.setattr(stuck, how, lambda *_: None)
            assert statuses(hanging.measure()) == ["verified", "verified", "failed", "failed"]
            for row, _ in curve_run.begin(curve(), supervisor).measure():
                assert row["status"] == "failed"
                assert f"process {stuck.pid} of this sweep, which could not be ended" in row["reason"]
        stuck.kill()
        stuck.wait()


def test_a_process_that_could_not_capture_a_graph_ends_while_it_has_its_turn():
    """torch may keep the GPU's memory then, which whoever is next would miss."""
    settings = SweepSettings(TrackingSettings("none", None, "kvexp"))
    with closing(curve_run.WorkerSupervisor(settings, lambda _: None)) as supervisor:
        failing = curve_run.begin(curve(mode="cudagraph"), supervisor)
        assert statuses(failing.measure()) == ["failed"] * 4
        assert not failing.worker.alive
        process = failing.worker._process
        assert process.wait() == 0
        assert (lock.lock_dir() / f"{UUID}.lock").read_text() == str(process.pid)  # it did not unsign
        with lock.gpu_lock(UUID, pytest.fail):
            pass


class Hogging(threading.Thread):
    """Has every other turn, each until somebody waits for the next."""

    def __init__(self):
        super().__init__()
        self.over = threading.Event()
        self.turns = 0

    def run(self):
        queue = lock.lock_dir() / f"{UUID}.next"
        while not self.over.is_set():
            with lock.gpu_lock(UUID):
                self.turns += 1
                while file_lock.find_holder(queue) is None and not self.over.is_set():
                    self.over.wait(0.001)
                self.over.wait(0.05)  # who waits is about to ask for whom


def test_a_sweep_says_once_that_it_waits_and_goes_on(tmp_path, capfd):
    home = tmp_path / "2026-11-21" / "10-00-00-000000"
    curves = [replace(curve(), workload=replace(curve().workload, seed=seed)) for seed in range(2)]
    jobs = [Job(one, home / str(number), ("impl=torch",)) for number, one in enumerate(curves)]
    other = Hogging()
    other.start()
    try:
        settings = SweepSettings(TrackingSettings("none", None, "kvexp"), timeout_s=TIMEOUT_S)
        assert runner.run(jobs, settings, "") == 0
    finally:
        other.over.set()
        other.join()
    assert [row["status"] for row in row_file.read(home)] == ["verified"] * 8
    assert other.turns >= 2
    said = f"kvexp: waiting for {ME}, which measures a curve on this GPU; sweeps take turns\n"
    assert capfd.readouterr().err.count(said) == 1
