"""Several places measure the curves of one sweep at the same time; here a GPU is a process without one."""

import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import psutil
import pytest

from kvexp.host.process import LineChild
from kvexp.results import row_file
from kvexp.sweep import runner, subprocess_worker
from kvexp.sweep.crew import interleave
from kvexp.sweep.place import Place
from kvexp.sweep.progress import CurveProgress
from kvexp.sweep.repetitions import plan_rounds
from kvexp.sweep.settings import SweepSettings
from kvexp.tracking import TrackingSettings

SETTINGS = SweepSettings(TrackingSettings("none", None, "kvexp"))
RESUMED = replace(SETTINGS, resumes=True)


@pytest.fixture(autouse=True, scope="module")
def light():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess_worker, "CHILD", "tests.helpers.light_child")
        yield


def gpus(*uuids):
    """A place for each GPU, whose process sees all of them, its own first."""
    every = [uuids[number:] + uuids[:number] for number in range(len(uuids))]
    return [Place(f"GPU {number}", "cuda:0", ",".join(own)) for number, own in enumerate(every)]


def rows_of(jobs):
    return row_file.read(jobs[0].folder.parent)


def count_points(rows):
    """How often each point of each round has a row."""
    return Counter((row.get("repetition"), row["seed"], row["num_tokens"]) for row in rows)


def test_each_curve_is_measured_once_at_one_place(jobs, capfd):
    twenty = jobs(*[{}] * 20)
    assert runner.run(twenty, SETTINGS, "", places=gpus("GPU-a", "GPU-b")) == 0
    rows = rows_of(twenty)
    assert set(count_points(rows).values()) == {1}
    assert {row["status"] for row in rows} == {"verified"}
    assert len(rows) == 80
    for job in twenty:
        assert len({row["host"] for row in row_file.read(job.folder)}) == 1
    assert {row["device_uuid"] for row in rows} == {"GPU-a", "GPU-b"}
    err = capfd.readouterr().err
    assert "80/80 points" in err
    found = re.findall(r"  seed=(\d+) on GPU [01]: 4 verified in ", err)
    assert sorted(map(int, found)) == list(range(20))


def test_a_round_is_measured_by_one_process_on_one_gpu_and_goes_on_there(jobs):
    """Also where the sweep is resumed with the GPUs in another order."""
    planned = plan_rounds(jobs({}, {}, {}), 6)
    begun = [job for number in range(1, 7) for job in planned if job.repetition == number][:10]
    assert runner.run(begun, replace(SETTINGS, repeat=6), "", places=gpus("GPU-a", "GPU-b")) == 0
    later = [replace(job, folder=job.folder.with_name(str(18 + n))) for n, job in enumerate(planned)]
    settings = replace(RESUMED, repeat=6)
    assert runner.run(later, settings, "", places=gpus("GPU-b", "GPU-a")) == 0
    rows = rows_of(planned)
    assert set(count_points(rows).values()) == {1}
    assert len(rows) == 6 * 3 * 4
    for number in range(1, 7):
        own = [row for row in rows if row["repetition"] == number]
        assert len({row["device_uuid"] for row in own}) == 1
    assert len({row["host"] for row in rows}) in (6, 7)  # the round that was begun has two
    assert {row["device_uuid"] for row in rows} == {"GPU-a", "GPU-b"}


def test_a_process_that_dies_costs_its_curve_alone(jobs):
    six = jobs({}, {}, {"dies": True}, {}, {}, {})
    assert runner.run(six, SETTINGS, "", places=gpus("GPU-a", "GPU-b")) == 1
    statuses = [[row["status"] for row in row_file.read(job.folder)] for job in six]
    assert statuses.pop(2) == ["verified"] + ["failed"] * 3
    assert statuses == [["verified"] * 4] * 5


def test_a_place_without_a_process_is_left_out_and_the_others_do_its_work(jobs, capfd):
    four = jobs({}, {}, {}, {})
    there, lost = gpus("GPU-a", "GPU-b")
    lost = replace(lost, start_child=lambda: LineChild("tests.helpers.no_such"))
    assert runner.run(four, SETTINGS, "", places=[there, lost]) == 0
    assert {row["device_uuid"] for row in rows_of(four)} == {"GPU-a"}
    assert "kvexp: GPU 1 is left out: the measuring process exited with 1" in capfd.readouterr().err


def test_what_a_lost_place_had_taken_is_measured_by_one_that_has_nothing_left_to_do(jobs, monkeypatch):
    """It loses its process, and cannot start another when all else is measured."""
    planned = plan_rounds(jobs({}, {"dies": True}, {}), 2)
    planned.sort(key=lambda job: (job.repetition, job.experiment.workload.seed))
    there, lost = gpus("GPU-a", "GPU-b")
    started = []

    def start():
        started.append(len(started))
        while started[1:] and Counter(row["device_uuid"] for row in rows_of(planned))["GPU-a"] < 12:
            time.sleep(0.02)
        return LineChild("tests.helpers.no_such" if started[1:] else "tests.helpers.light_child")

    lost = replace(lost, start_child=start)
    assert runner.run(planned, replace(SETTINGS, repeat=2), "", places=[there, lost]) == 1
    rows = rows_of(planned)
    assert set(count_points(rows).values()) == {1}
    assert len(rows) == 2 * 3 * 4
    by_gpu = Counter((row["device_uuid"], row["seed"]) for row in rows)
    assert by_gpu == {("GPU-a", 0): 4, ("GPU-b", 0): 4, ("GPU-a", 1): 4, ("GPU-b", 1): 4, ("GPU-a", 2): 8}


def test_what_no_place_is_left_to_measure_is_said_and_measured_when_the_sweep_is_resumed(jobs, capfd):
    four = jobs({}, {}, {}, {})
    lost = [
        replace(place, start_child=lambda: LineChild("tests.helpers.no_such"))
        for place in gpus("GPU-a", "GPU-b")
    ]
    assert runner.run(four, SETTINGS, "", places=lost) == 1
    assert "kvexp: no place was left to measure at" not in capfd.readouterr().err  # no row, so no summary
    assert runner.run(four, RESUMED, "", places=gpus("GPU-a", "GPU-b")) == 0
    assert set(count_points(rows_of(four)).values()) == {1}


def test_what_one_gpu_of_the_sweep_has_measured_no_other_measures_again(jobs):
    two, again = jobs({}, {}), jobs({}, {}, first=2)
    assert runner.run(two, SETTINGS, "", places=gpus("GPU-a", "GPU-b")) == 0
    assert runner.run(again, RESUMED, "", places=gpus("GPU-c", "GPU-d")) == 0
    assert {row["device_uuid"] for row in rows_of(two)} <= {"GPU-a", "GPU-b"}
    assert not any((job.folder / row_file.ROWS).exists() for job in again)


def test_two_curves_that_are_one_are_measured_once(jobs, tmp_path):
    """Also where both places would begin with it."""
    (one,) = jobs({})
    twin = replace(one, folder=one.folder.with_name("1"))
    assert runner.run([one, twin], SETTINGS, "", places=gpus("GPU-a", "GPU-b")) == 0
    assert set(count_points(rows_of([one])).values()) == {1}


def test_an_interrupt_ends_the_processes_of_all_places(jobs, monkeypatch, tmp_path, capfd):
    three = jobs({}, {"waits": str(tmp_path / "never")}, {"waits": str(tmp_path / "never")})
    before = set(psutil.Process().children())

    def advance(self, row):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CurveProgress, "advance", advance)
    with pytest.raises(KeyboardInterrupt):
        runner.run(three, SETTINGS, "", None, "kvexp resume=there", gpus("GPU-a", "GPU-b"))
    left = set(psutil.Process().children()) - before
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]
    assert "interrupted after 1 of 12 points; this goes on: kvexp resume=there" in capfd.readouterr().err
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kvexp")]


def test_fail_fast_ends_the_work_of_all_places(jobs, tmp_path, capfd):
    three = jobs({"dies": True}, {"waits": str(tmp_path / "never")}, {})
    settings = replace(SETTINGS, fail_fast=True)
    assert runner.run(three, settings, "", places=gpus("GPU-a", "GPU-b")) == 1
    assert "fail_fast=true ended the sweep there; " in capfd.readouterr().err


class TestInterleave:
    def test_asks_for_the_next_item_when_the_last_was_dealt_with(self):
        asked = []

        def count(name):
            for number in range(50):
                asked.append((name, number))
                yield name, number

        dealt = []
        for item in interleave([count("a"), count("b")], []):
            assert asked.count(item) == 1
            assert (item[0], item[1] + 1) not in asked
            dealt.append(item)
        assert sorted(dealt) == [(name, number) for name in "ab" for number in range(50)]

    def test_ends_with_the_error_of_one(self):
        def fail():
            yield 1
            raise ValueError("two")

        with pytest.raises(ValueError, match="two"):
            list(interleave([fail(), iter(())], []))

    def test_asks_no_more_when_its_caller_stops(self):
        asked, threads = [], []

        def count():
            for number in range(100):
                asked.append(number)
                yield number

        items = interleave([count(), count()], threads)
        next(items)
        items.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert len(asked) <= 4
