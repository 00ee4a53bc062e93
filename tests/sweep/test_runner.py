import io
import json
import os
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import torch

from kvexp import report
from kvexp.errors import ConfigError, Terminated, TrackingError
from kvexp.host import file_lock
from kvexp.report import PrintableConsole, live
from kvexp.report.content import build_content
from kvexp.results import load, row_file, sweep_dir
from kvexp.results.sweep_state import SweepWatcher
from kvexp.sweep import prestart, runner
from kvexp.sweep.curve_run import CurveRun
from kvexp.sweep.job import Job
from kvexp.sweep.progress import CurveProgress
from kvexp.sweep.repetitions import plan_rounds
from kvexp.sweep.runner import exit_code
from kvexp.sweep.settings import SweepSettings
from kvexp.sweep.subprocess_worker import Worker
from kvexp.tracking import TrackingSettings, artifacts, run_data
from tests.helpers import compose

# A measuring process imports torch for seconds, so only tests of processes have one.
UNTRACKED = SweepSettings(TrackingSettings("none", None, "kvexp"), isolation="inline")
TRACKED = replace(UNTRACKED, tracking=TrackingSettings("local", "sqlite:////nowhere/mlflow.db", "kvexp"))
APART, APART_TRACKED = (replace(settings, isolation="process") for settings in (UNTRACKED, TRACKED))
COMMAND = "python -m kvexp workload=tiny"


class Tracker:
    """A store that remembers what it is asked, and is out of reach when it is asked for `trouble`."""

    uri = "memory://"
    page = ""
    refused = ()

    def __init__(self, trouble=()):
        self.asked = []
        self.on_its_way = 0
        self.trouble = trouble

    def _take(self, what, *details):
        self.asked.append((what, *details))
        if what in self.trouble:
            raise TrackingError("the store at memory:// is out of reach")

    def start_sweep(self, sweep_id, command, resumes=False, name="", began_ms=None, provenance=None):
        self._take("start", sweep_id, command)

    def log_curve(self, folder, target, rows):
        self.on_its_way = 1
        self._take("curve", folder.name, [row["num_tokens"] for row in rows])

    def settle(self):
        self.on_its_way = 0

    def end_sweep(self, status):
        self._take("end", status)

    def log_report(self, sweep_id, folder):
        self._take("report", sweep_id, sorted(path.name for path in folder.iterdir()))


@dataclass
class SubprocessTracker:
    """A store in this very process, which may say of itself that it is not ready yet."""

    tracker: Tracker
    is_ready: bool = True

    def connect(self, settings):
        assert settings == TRACKED.tracking

    def ready(self, timeout_s):
        return self.is_ready or timeout_s > 0

    def wait(self):
        return self.tracker

    def close(self):
        pass


@pytest.fixture(params=["waited for", "asked later"])
def store(request, monkeypatch):
    """Whether curves mind what else runs: then the store is ready before the first of them."""
    monkeypatch.setattr(CurveRun, "is_host_sensitive", request.param == "waited for")


@pytest.fixture
def jobs(tmp_path):
    """A sweep's jobs; each is `torch`, `cuda`, a class of tests.wrong, or a pair of one and its options."""

    def made(*names, overrides=()):
        chosen = ("workload=tiny", "timer=none", "device=cpu", *overrides)
        found = []
        for number, name in enumerate(names):
            name, options = name if isinstance(name, tuple) else (name, {})
            impl = name if name in compose.options("impl") else "torch"
            curve = compose.experiment(f"impl={impl}", f"workload.seed={number}", *chosen)
            if impl != name:
                wrong = replace(
                    curve.impl, name=name, target=f"tests.helpers.wrong_impls.{name}", options=options
                )
                curve = replace(curve, impl=wrong)
            folder = tmp_path / "2026-11-21" / "13-00-00-000001" / str(number)
            found.append(Job(curve, folder, (f"impl={name}",)))
        return found

    return made


@pytest.fixture
def tracked(monkeypatch):
    """Has the sweep track to a given store."""

    def to(tracker, is_ready=True):
        monkeypatch.setattr(prestart, "SubprocessTracker", lambda: SubprocessTracker(tracker, is_ready))
        return tracker

    return to


def statuses(job):
    return [row["status"] for row in row_file.read(job.folder)]


class TestExitCode:
    @pytest.mark.parametrize(
        ("found", "code"),
        [
            (["ok"], 0),
            (["verified"], 0),
            (["ok", "skipped"], 0),
            (["verified", "skipped"], 0),
            (["ok", "failed"], 1),
            (["verified", "incorrect"], 1),
            (["skipped", "failed"], 1),
            (["skipped"], 3),
            ([], 3),
        ],
    )
    def test_follows_from_the_rows(self, found, code):
        assert exit_code([{"status": status} for status in found]) == code


@contextmanager
def handled(number, handler):
    """That is what the signal meets."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


class TestASweep:
    def test_leaves_the_rows_of_each_curve_of_a_device_from_one_process(self, jobs, monkeypatch, capfd):
        """Write a row before the next point begins, and fail a wrong curve alone."""
        four = jobs("Numbered", "cuda", ("Deadly", {"by": "exit", "threads": 3}), "Numbered")
        sync, send, on_disk, seen = os.fsync, Worker._send, {}, []

        def fsync(handle):
            sync(handle)
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            on_disk[path] = 0 if path.is_dir() else len(path.read_bytes().splitlines())

        def goes_on(worker, line):
            if not line:
                seen.append(sum(on_disk.get(job.folder / "rows.jsonl", 0) for job in four))
            send(worker, line)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Worker, "_send", goes_on)
        assert runner.run(four, APART, COMMAND) == 1
        assert seen == list(range(1, 13))
        numbered = ["verified", "verified", "skipped", "skipped"]
        assert [statuses(job) for job in four] == [numbered, ["skipped"] * 4, ["failed"] * 4, numbered]
        lines = (four[0].folder / "rows.jsonl").read_text().splitlines()
        assert [json.loads(line)["num_tokens"] for line in lines] == [1, 3, 16, 50]
        before, _, wrong, after = (row_file.read(job.folder)[-1]["reason"] for job in four)
        assert before == after
        assert before.startswith("process ")
        assert "takes no option 'threads'" in wrong
        out, err = capfd.readouterr()
        assert "impl=cuda needs an NVIDIA GPU" in out
        assert f"rows: {four[0].folder.parent}" in err

    def test_measures_once_what_two_curves_turn_out_to_be(self, jobs, capfd):
        one, other = jobs("torch", "torch")
        mode = replace(one.experiment.mode, name="no_graph")
        twin = replace(other, experiment=replace(one.experiment, mode=mode))
        assert runner.run([one, twin], UNTRACKED, COMMAND) == 0
        assert statuses(one) == ["verified"] * 4
        assert not (twin.folder / "rows.jsonl").exists()
        out, err = capfd.readouterr()
        assert "8/8 points" in err
        assert "is there already, as device=cpu mode=no_graph timer=none; it is not measured twice" in err
        assert "torch NHD bfloat16: 4 points" in out

    def test_measures_curves_that_differ_in_their_workloads_name(self, jobs):
        one, other = jobs("torch", "torch")
        workload = replace(one.experiment.workload, name="mine")
        named = replace(other, experiment=replace(one.experiment, workload=workload))
        assert runner.run([one, named], UNTRACKED, COMMAND) == 0
        assert [statuses(job) for job in (one, named)] == [["verified"] * 4] * 2

    @pytest.mark.parametrize("other", [{"driver": "580.65.06"}, {"device_uuid": "GPU-7"}])
    def test_is_measured_again_where_another_driver_or_gpu_measured(self, jobs, other):
        (one,) = jobs("torch", overrides=("workload.num_tokens=[1,3]",))
        assert runner.run([one], UNTRACKED, COMMAND) == 0
        file = one.folder / "rows.jsonl"
        there = [row | other for row in row_file.read(one.folder)[:1]] + row_file.read(one.folder)[1:]
        file.write_text("".join(json.dumps(row) + "\n" for row in there))
        again = replace(one, folder=one.folder.with_name("1"))
        assert runner.run([again], replace(UNTRACKED, resumes=True), COMMAND) == 0
        assert [row["num_tokens"] for row in row_file.read(again.folder)] == [1]

    def test_keeps_the_raw_samples_beside_the_rows(self, jobs):
        (one,) = jobs("torch", overrides=("timer=wall_clock", "timer.min_samples=5", "timer.max_samples=5"))
        assert runner.run([one], UNTRACKED, COMMAND) == 0
        lines = (one.folder / "samples.jsonl").read_text().splitlines()
        assert [len(json.loads(line)["samples_us"]) for line in lines] == [5] * 4
        assert statuses(one) == ["ok"] * 4

    def test_goes_on_in_a_fresh_process_and_knows_as_much_of_the_points_that_a_dead_one_left(self, jobs):
        three = jobs("Numbered", ("Fatal", {"by": "kill"}), "Numbered")
        assert runner.run(three, APART, COMMAND) == 1
        assert statuses(three[1]) == ["verified", "verified", "failed", "failed"]
        before, after = (row_file.read(job.folder)[-1]["reason"] for job in (three[0], three[2]))
        assert before != after
        assert statuses(three[2]) == ["verified", "verified", "skipped", "skipped"]
        measured, _, dead, left = row_file.read(three[1].folder)
        assert list(dead) == list(left) == list(measured)
        assert dead["reason"] == left["reason"]
        assert dead["reason"].startswith("the measuring process was ended by SIGKILL; its last words:\n")
        assert (left["num_tokens"], left["device"], left["mode"]) == (50, "cpu", "no_graph")
        assert left["device_name"] == measured["device_name"]
        assert left["latency_us"] is None

    @pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has that GPU")
    def test_on_a_device_that_is_not_there_skips_every_curve(self, jobs):
        two = jobs("torch", "torch", overrides=("device=cuda:7",))
        assert runner.run(two, UNTRACKED, COMMAND) == 3
        for job in two:
            assert statuses(job) == ["skipped"] * 4
            assert row_file.read(job.folder)[0]["reason"].startswith(
                "device=cuda:7 was asked for and this machine"
            )

    def test_ends_with_what_is_wrong_on_every_machine_when_all_its_curves_are(self, jobs, tracked):
        tracker = tracked(Tracker())
        wrong = ("Deadly", {"by": "exit", "threads": 3})
        with pytest.raises(ConfigError, match="takes no option 'threads'"):
            runner.run(jobs(wrong, wrong), TRACKED, COMMAND)
        assert tracker.asked[-1] == ("end", "KILLED")

    def test_stops_when_rows_cannot_be_written(self, jobs, monkeypatch, capfd):
        def full(self, row, samples_us=()):
            raise OSError(28, "No space left on device")

        two = jobs("torch", "torch")
        monkeypatch.setattr(row_file.RowFile, "append", full)
        assert runner.run(two, UNTRACKED, COMMAND) == 1
        said = capfd.readouterr().err
        assert "rows.jsonl (No space left on device), so the sweep stops; the 0 rows before it" in said

    @pytest.mark.parametrize("part", ["0", "", ".."], ids=["curve", "sweep", "all"])
    @pytest.mark.parametrize("rows", [1, 4], ids=["midway", "between curves"])
    def test_whose_folder_goes_says_so(self, jobs, tracked, monkeypatch, capfd, part, rows):
        two, tracker, written = jobs("torch", "torch"), tracked(Tracker()), []
        gone = Path(os.path.normpath(two[0].folder.parent / part))
        append = row_file.RowFile.append

        def remove_after(self, row, samples_us=()):
            append(self, row, samples_us)
            written.append(row)
            if len(written) == rows:
                shutil.rmtree(gone)

        monkeypatch.setattr(row_file.RowFile, "append", remove_after)
        code, said = runner.run(two, TRACKED, COMMAND), capfd.readouterr().err
        if (part, rows) == ("0", 4):  # a curve's folder that is not needed any more
            assert (code, len(written)) == (0, 8)
            return
        assert (code, len(written)) == (1, rows)
        assert f"kvexp: {gone} is gone, so the sweep stops\n" in said
        assert (f"rows: lost, since {gone} is gone\n" in said) == (part != "0")
        assert [line for line in said.splitlines() if "whole" in line or "sync" in line] == []
        assert tracker.asked[-1] == ("end", "FAILED")

    @pytest.mark.parametrize(
        ("number", "settings"),
        [(signal.SIGTERM, APART_TRACKED), (signal.SIGHUP, TRACKED)],
        ids=["TERM", "HUP"],
    )
    def test_that_is_asked_to_end_ends_its_run_and_its_process(
        self, jobs, tracked, monkeypatch, number, settings
    ):
        one, tracker, pids = jobs("torch"), tracked(Tracker()), []
        started = Worker.__init__

        def start(self, *arguments):
            started(self, *arguments)
            pids.append(self._process.pid)

        monkeypatch.setattr(Worker, "__init__", start)
        monkeypatch.setattr(CurveProgress, "advance", lambda self, row: os.kill(os.getpid(), number))
        # Whoever runs the tests may have it ignored.
        with handled(number, signal.SIG_DFL), pytest.raises(Terminated) as raised:
            runner.run(one, settings, COMMAND)
        assert raised.value.number == number
        assert [asked[0] for asked in tracker.asked] == ["start", "end"]
        assert tracker.asked[-1] == ("end", "KILLED")
        assert len(row_file.read(one[0].folder)) == 1
        assert not any(psutil.pid_exists(pid) for pid in pids)

    def test_goes_on_where_a_signal_is_ignored(self, jobs, monkeypatch):
        monkeypatch.setattr(CurveProgress, "advance", lambda self, row: os.kill(os.getpid(), signal.SIGHUP))
        with handled(signal.SIGHUP, signal.SIG_IGN):  # as nohup does
            assert runner.run(jobs("torch"), UNTRACKED, COMMAND) == 0
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    def test_does_not_begin_in_a_folder_where_another_is_at_work(self, jobs):
        (one,) = jobs("torch")
        one.folder.parent.mkdir(parents=True)
        with (
            file_lock.locked(one.folder.parent / sweep_dir.LOCK),
            pytest.raises(ConfigError, match=f"another sweep is at work there: .* process {os.getpid()}$"),
        ):
            runner.run([one], UNTRACKED, COMMAND)
        assert not one.folder.exists()

    def test_has_its_folder_to_itself_until_its_end(self, jobs, monkeypatch):
        (one,) = jobs("torch")
        home, advance, holders = one.folder.parent, CurveProgress.advance, []

        def looked(progress, row):
            holders.append(file_lock.find_holder(home / sweep_dir.LOCK))
            advance(progress, row)

        monkeypatch.setattr(CurveProgress, "advance", looked)
        assert runner.run([one], UNTRACKED, COMMAND) == 0
        assert holders == [f"process {os.getpid()}"] * 4
        assert file_lock.find_holder(home / sweep_dir.LOCK) is None

    def test_whose_folder_cannot_be_locked_does_not_begin(self, jobs):
        one = jobs("torch")
        (one[0].folder.parent / ".lock").mkdir(parents=True)
        with pytest.raises(ConfigError, match=r"13-00-00-000001 cannot be locked \(Is a directory\)"):
            runner.run(one, UNTRACKED, COMMAND)

    def test_that_is_interrupted_leaves_whole_rows_and_ends_its_run(
        self, jobs, tracked, monkeypatch, capfd, store
    ):
        two, seen, tracker = jobs("torch", "torch"), [], tracked(Tracker())

        def advance(self, row):
            seen.append(row)
            if len(seen) == 6:
                raise KeyboardInterrupt

        monkeypatch.setattr(CurveProgress, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            runner.run(two, TRACKED, COMMAND, None, "python -m kvexp resume=there")
        assert [len(row_file.read(job.folder)) for job in two] == [4, 2]
        assert [what for what, *_ in tracker.asked] == ["start", "curve", "end"]
        assert tracker.asked[-1] == ("end", "KILLED")
        err = capfd.readouterr().err
        assert f"rows: {two[0].folder.parent}\n" in err
        assert "kvexp: interrupted after 6 of 8 points; this goes on: python -m kvexp resume=there\n" in err

    def test_that_is_interrupted_counts_wrong_points_and_those_of_earlier_starts(
        self, jobs, monkeypatch, capfd
    ):
        def interrupt_at(count):
            seen = []

            def advance(self, row):
                seen.append(row)
                if len(seen) == count:
                    raise KeyboardInterrupt

            monkeypatch.setattr(CurveProgress, "advance", advance)

        for count, resumes, reached in ((3, False, 3), (4, True, 7)):
            interrupt_at(count)
            with pytest.raises(KeyboardInterrupt):
                runner.run(jobs("torch", "Idle"), replace(UNTRACKED, resumes=resumes), COMMAND)
            assert f"kvexp: interrupted after {reached} of 8 points\n" in capfd.readouterr().err

    @pytest.mark.parametrize(("where", "reached"), [("print_summary", 4), ("_start_tracking", 0)])
    def test_that_is_interrupted_while_it_begins_or_ends_says_how_far_it_came(
        self, jobs, monkeypatch, capfd, where, reached
    ):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(runner, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            runner.run(jobs("torch"), UNTRACKED, COMMAND)
        assert capfd.readouterr().err.count(f"kvexp: interrupted after {reached} of 4 points\n") == 1

    def test_that_fails_or_is_wrong_is_not_called_interrupted(self, jobs, capfd):
        runner.run(jobs("Idle"), UNTRACKED, COMMAND, None, "python -m kvexp resume=there")
        with pytest.raises(ConfigError):
            runner.run(jobs(("Deadly", {"threads": 3})), UNTRACKED, COMMAND)
        assert "interrupted" not in capfd.readouterr().err


class TestARepeatedSweep:
    def test_measures_every_round_in_a_fresh_process(self, jobs):
        in_rounds = plan_rounds(jobs("Numbered", "torch"), 2)
        assert runner.run(in_rounds, replace(APART, repeat=2), COMMAND) == 0
        found = [(job.repetition, row) for job in in_rounds for row in row_file.read(job.folder)]
        assert all(row["repetition"] == repetition for repetition, row in found)
        processes = {row["repetition"]: row["reason"] for _, row in found if row["status"] == "skipped"}
        assert len(set(processes.values())) == len(processes) == 2

    def test_shows_each_point_once_and_says_that_it_is_the_middle_one(self, jobs, capfd):
        timed = ("timer=wall_clock", "timer.min_samples=5", "timer.max_samples=5")
        in_rounds = plan_rounds(jobs("torch", overrides=timed), 3)
        assert runner.run(in_rounds, replace(UNTRACKED, repeat=3), COMMAND) == 0
        out, err = capfd.readouterr()
        lines = [line for line in out.splitlines() if not line.startswith("noisy")]
        assert len(lines) == 1 + 4 + 1
        first = sorted(row_file.read(job.folder)[0]["latency_us"] for job in in_rounds)
        assert report.number(first[1]) in out.splitlines()[1]
        assert "each line is the process in the middle of 3" in err
        assert "torch NHD bfloat16 (2 of 3): 4 ok" in err

    def test_lists_a_curve_that_went_wrong_once(self, jobs, capfd):
        assert runner.run(plan_rounds(jobs("Idle", "torch"), 2), replace(UNTRACKED, repeat=2), COMMAND) == 1
        out, err = capfd.readouterr()
        assert "1 of 2 curves went wrong" in err
        assert "4 incorrect (num_tokens 1, 3, 16, 50)" in err
        assert "4 points" in out

    def test_is_resumed_round_by_round(self, jobs):
        first = plan_rounds(jobs("torch"), 2)
        runner.run(first, replace(UNTRACKED, repeat=2), COMMAND)
        file = first[1].folder / "rows.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
        later = [
            replace(job, folder=job.folder.with_name(str(int(job.folder.name) + 2)))
            for job in plan_rounds(jobs("torch"), 3)
        ]
        assert runner.run(later, replace(UNTRACKED, repeat=3, resumes=True), COMMAND) == 0
        new = [
            (row["repetition"], row["num_tokens"])
            for job in later if job.folder.exists()
            for row in row_file.read(job.folder)
        ]  # fmt: skip
        assert new == [(2, 50), (3, 1), (3, 3), (3, 16), (3, 50)]

    def test_goes_on_from_one_that_was_not(self, jobs):
        (once,) = jobs("torch")
        runner.run([once], UNTRACKED, COMMAND)
        later = [
            replace(job, folder=job.folder.with_name(str(int(job.folder.name) + 1)))
            for job in plan_rounds([once], 2)
        ]
        assert runner.run(later, replace(UNTRACKED, repeat=2, resumes=True), COMMAND) == 0
        assert [job.folder.exists() for job in later] == [False, True]


def test_a_curve_has_one_name_wherever_it_is_named(jobs, capfd):
    planned = plan_rounds(jobs("torch", "Idle", "torch"), 2)
    home = planned[0].folder.parent
    assert runner.run(planned, replace(UNTRACKED, repeat=2), COMMAND) == 1
    out, err = capfd.readouterr()
    names = {"torch seed=0", "Idle seed=1", "torch seed=2"}
    rows = [row for job in planned for row in row_file.read(job.folder)]
    assert {row["curve"] for row in rows} == names
    assert {run_data.name(row) for row in rows} == names | {f"{name} #2" for name in names}
    progress = [line.partition("  ")[2].partition(":")[0] for line in err.splitlines()[:6]]
    assert sorted(progress) == sorted(f"{name} ({number} of 2)" for name in names for number in (1, 2))
    assert "  Idle seed=1: 4 incorrect (num_tokens 1, 3, 16, 50)\n" in err
    assert "torch seed=0, torch seed=2: 8 points: " in out
    watched = PrintableConsole(file=io.StringIO())
    watched.print(live.render_state(SweepWatcher(home).read(time.time), datetime.now(), watched))
    assert all(f"\n{name} " in watched.file.getvalue() for name in names)
    assert {name for one in build_content(load.read([home], home)).others for name in one.curves} == names


class TestTracking:
    def test_is_told_of_the_sweep_each_curve_and_the_end(self, jobs, tracked, capfd):
        tracker = tracked(Tracker())
        assert runner.run(jobs("torch", "cuda"), TRACKED, COMMAND) == 0
        assert tracker.asked == [
            ("start", "2026-11-21/13-00-00-000001", COMMAND),
            ("curve", "0", [1, 3, 16, 50]),
            ("curve", "1", [1, 3, 16, 50]),
            ("end", "FINISHED"),
            ("report", "2026-11-21/13-00-00-000001", ["report.html", "report.md"]),
        ]
        assert "tracked in memory://" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("minded", "is_ready", "seen"),
        [
            (True, True, [(1, 0), (2, 0)]),
            (True, False, [(1, 0), (2, 0)]),
            (False, True, [(0, 0), (2, 1)]),
            (False, False, [(0, 0), (0, 0)]),
        ],
    )
    def test_is_waited_for_before_a_curve_that_minds_the_host_alone(
        self, jobs, tracked, monkeypatch, minded, is_ready, seen
    ):
        tracker, found, measured = tracked(Tracker(), is_ready), [], CurveRun.measure

        def points(begun):
            found.append((len(tracker.asked), tracker.on_its_way))
            return measured(begun)

        monkeypatch.setattr(CurveRun, "is_host_sensitive", minded)
        monkeypatch.setattr(CurveRun, "measure", points)
        assert runner.run(jobs("torch", "torch"), TRACKED, COMMAND) == 0
        assert found == seen
        assert [what for what, *_ in tracker.asked] == ["start", "curve", "curve", "end", "report"]

    def test_is_not_waited_for_before_the_outcome_is_told(self, jobs, tracked, monkeypatch):
        tracker, seen, told = tracked(Tracker(), is_ready=False), [], runner.print_summary

        def tell(*arguments):
            seen.extend(what for what, *_ in tracker.asked)
            told(*arguments)

        monkeypatch.setattr(CurveRun, "is_host_sensitive", False)
        monkeypatch.setattr(runner, "print_summary", tell)
        assert runner.run(jobs("torch", "torch"), TRACKED, COMMAND) == 0
        assert seen == []
        assert [what for what, *_ in tracker.asked] == ["start", "curve", "curve", "end", "report"]

    def test_begins_while_a_curve_is_measured_that_does_not_mind(self, jobs, tracked, monkeypatch):
        tracker, seen, advance = tracked(Tracker()), [], CurveProgress.advance

        def advanced(progress, row):
            seen.append([what for what, *_ in tracker.asked])
            advance(progress, row)

        monkeypatch.setattr(CurveRun, "is_host_sensitive", False)
        monkeypatch.setattr(CurveProgress, "advance", advanced)
        runner.run(jobs("torch"), TRACKED, COMMAND)
        assert seen == [[], ["start"], ["start"], ["start"]]

    def test_of_a_sweep_with_a_wrong_row_ends_failed(self, jobs, tracked):
        tracker = tracked(Tracker())
        runner.run(jobs("Idle"), TRACKED, COMMAND)
        assert ("end", "FAILED") in tracker.asked

    @pytest.mark.parametrize("trouble", [("start",), ("curve",), ("curve", "end"), ("end",)])
    def test_that_fails_costs_one_line_and_nothing_else(self, jobs, tracked, capfd, trouble):
        tracked(Tracker(trouble))
        two = jobs("torch", "torch")
        assert runner.run(two, TRACKED, COMMAND) == 0
        assert [statuses(job) for job in two] == [["verified"] * 4] * 2
        err = capfd.readouterr().err
        assert err.count("kvexp:") == err.count("the store at memory:// is out of reach") == 1
        assert "the sweep goes on untracked, its rows are on disk" in err

    def test_draws_its_report_while_the_last_curve_is_on_its_way(self, jobs, tracked, monkeypatch):
        tracker, found, draw = tracked(Tracker()), [], artifacts.draw_report

        def drawing(*arguments):
            found.append([what for what, *_ in tracker.asked])
            draw(*arguments)

        monkeypatch.setattr(artifacts, "draw_report", drawing)
        runner.run(jobs("torch"), TRACKED, COMMAND)
        assert found == [["start", "curve"]]

    def test_that_is_interrupted_while_it_draws_has_told_its_rows_and_its_end(
        self, jobs, tracked, monkeypatch, capfd
    ):
        def interrupted(*_):
            raise KeyboardInterrupt

        tracker = tracked(Tracker())
        monkeypatch.setattr(artifacts, "draw_report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(jobs("torch"), TRACKED, COMMAND)
        assert tracker.asked[-1] == ("end", "FINISHED")
        out, err = capfd.readouterr()
        assert "verified" in out
        assert "tracked in memory://" in err

    def test_whose_report_cannot_be_sent_costs_one_line(self, jobs, tracked, capfd):
        tracked(Tracker(("report",)))
        assert runner.run(jobs("torch"), TRACKED, COMMAND) == 0
        out, err = capfd.readouterr()
        assert "verified" in out
        *_, where, why = err.splitlines()
        assert where == "tracked in memory://"
        assert why.startswith("kvexp: the store at memory:// is out of reach; the runs have no report")

    def test_to_a_store_that_cannot_be_made_costs_one_line(self, jobs, tracked, monkeypatch, capfd):
        def wait(_):
            raise TrackingError("the store at memory:// cannot be made")

        tracked(Tracker())
        monkeypatch.setattr(SubprocessTracker, "wait", wait)
        (one,) = jobs("torch")
        assert runner.run([one], TRACKED, COMMAND) == 0
        assert statuses(one) == ["verified"] * 4
        err = capfd.readouterr().err
        assert err.count("kvexp: ") == 1
        assert "tracked in" not in err
