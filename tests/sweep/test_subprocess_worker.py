import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from kvexp.bench import environment
from kvexp.errors import ConfigError, Unsupported, WorkerDied
from kvexp.host import process
from kvexp.measurement import Measurement
from kvexp.results.point_identity import identify
from kvexp.sweep import subprocess_worker
from kvexp.sweep.inline_worker import InlineWorker
from kvexp.sweep.subprocess_worker import Worker
from kvexp.timer.none import NoTimer
from tests.helpers import compose
from tests.helpers.processes import ended


def curve(*overrides, how=None, **options):
    """The experiment on the CPU; written by the class `how` of tests.wrong, if one is given."""
    made = compose.experiment("workload=tiny", "impl=torch", "timer=none", "device=cpu", *overrides)
    if how:
        made = replace(
            made,
            impl=replace(made.impl, name=how, target=f"tests.helpers.wrong_impls.{how}", options=options),
        )
    return made.resolve("cpu")


def statuses(worker, experiment):
    return [row["status"] for row, _ in worker.run(experiment)]


@pytest.fixture(scope="module")
def shared():
    """A process for the tests that leave it as it was."""
    with Worker("cpu") as worker:
        worker.wait()
        yield worker


@pytest.fixture
def worker():
    with Worker("cpu") as made:
        made.wait()
        yield made


class TestAProcess:
    def test_knows_its_device_and_its_machine(self, shared):
        assert shared.device == "cpu"
        # It runs beside this one, so it reads the same.
        assert shared.environment == environment.read("cpu") | {
            "cpu_threads": shared.environment["cpu_threads"]
        }

    def test_measures_a_curve_point_by_point(self, shared):
        asked = curve("timer=wall_clock", "timer.min_samples=5", "timer.max_samples=5")
        found = list(shared.run(asked))
        assert [row["num_tokens"] for row, _ in found] == [1, 3, 16, 50]
        for row, samples_us in found:
            assert (row["status"], row["samples"]) == ("ok", 5)
            assert len(samples_us) == 5
            assert min(samples_us) == row["latency_us_min"]

    def test_gives_the_rows_that_the_pipeline_gives(self, shared):
        (row, samples_us), *_ = shared.run(curve())
        (case, *_) = curve().cases()
        at = {key: value for key, value in row.items() if key == "started_at" or key.endswith("_s")}
        environment = shared.columns
        expected = Measurement(case, "verified", NoTimer.untimed, environment=environment, contract="full")
        assert row == expected.row() | at
        assert samples_us == []

    @pytest.mark.skipif(torch.cuda.is_available(), reason="device=cpu then has a GPU beside it")
    def test_interprets_triton_on_a_cpu(self, shared):
        assert statuses(shared, curve("impl=triton")) == ["verified"] * 4

    def test_takes_one_curve_after_the_other(self, shared):
        assert statuses(shared, curve(how="Idle")) == ["incorrect"] * 4
        assert statuses(shared, curve()) == ["verified"] * 4
        assert shared.alive

    def test_says_what_is_wrong_on_every_machine_and_goes_on(self, shared):
        made = curve()
        broken = replace(made, impl=replace(made.impl, options={"threads": 3}))
        with pytest.raises(ConfigError, match="torch takes no option 'threads'"):
            list(shared.run(broken))
        assert statuses(shared, curve()) == ["verified"] * 4

    def test_is_not_confused_by_what_a_library_prints(self, shared):
        assert statuses(shared, curve(how="Chatty")) == ["verified"] * 4

    def test_gives_its_memory_back_when_it_is_closed(self):
        with Worker("cpu") as made:
            assert made.alive
        assert not made.alive

    def test_that_was_closed_before_it_was_ready_is_gone(self):
        made = Worker("cpu")
        made.close()
        assert not made.alive

    def test_names_the_sources_of_the_implementation_before_it_measures(self, shared):
        shared.open(curve())
        assert len(shared.impl_hash) == 16
        assert [row["impl_hash"] for row, _ in shared.measure([3])] == [shared.impl_hash]
        before = shared.impl_hash
        shared.open(curve(how="Idle"))
        assert list(shared.measure([])) == []
        assert shared.impl_hash != before

    @pytest.mark.parametrize(
        ("overrides", "device", "sensitive"),
        [
            (["timer=wall_clock"], "cpu", True),
            ([], "cuda:0", False),
            (["timer=cupti"], "cuda:0", False),
            (["timer=auto", "mode=no_graph"], "cuda:0", True),
            (["timer=wall_clock", "mode=cudagraph"], "cuda:0", True),
        ],
    )
    def test_says_whether_host_load_can_affect_the_times(self, shared, overrides, device, sensitive):
        made = compose.experiment("workload=tiny", "impl=torch", *overrides).resolve(device)
        inline = InlineWorker("cpu")
        for worker in (shared, inline):
            worker.open(made)
            assert worker.is_host_sensitive == sensitive
        assert list(shared.measure([])) == []

    def test_takes_a_timer_that_is_not_there_for_one_that_host_load_affects(self, shared):
        made = compose.experiment("workload=tiny", "impl=torch").resolve("cuda:0")
        shared.open(replace(made, timer=replace(made.timer, target="kvexp.timer.nowhere.Sundial")))
        assert shared.is_host_sensitive
        assert list(shared.measure([])) == []

    def test_measures_only_the_points_that_are_wanted(self, shared):
        for wanted in ([16, 3], [], [50]):
            shared.open(curve())
            assert [row["num_tokens"] for row, _ in shared.measure(wanted)] == wanted
        assert statuses(shared, curve()) == ["verified"] * 4

    def test_that_does_not_start_in_time_is_given_up(self, monkeypatch):
        monkeypatch.setattr(subprocess_worker, "START_SECONDS", 0.01)
        with Worker("cpu") as slow:
            with pytest.raises(WorkerDied, match=r"did not start within 0\.01 s, so its process was killed"):
                slow.wait()
            assert not slow.alive


class TestThisVeryProcess:
    def test_gives_the_rows_that_a_process_of_its_own_gives(self, shared):
        inline = InlineWorker("cpu")
        inline.wait()
        inline.open(curve())
        found = [row for row, _ in inline.measure([1, 50])]
        shared.open(curve())
        for here, there in zip(found, [row for row, _ in shared.measure([1, 50])], strict=True):
            assert identify(here) == identify(there)
            assert list(here) == list(there)

    def test_raises_what_is_wrong_on_every_machine(self):
        inline = InlineWorker("cpu")
        inline.wait()
        inline.open(curve(how="Deadly", by="exit", threads=3))
        with pytest.raises(ConfigError, match="takes no option 'threads'"):
            list(inline.measure([1]))


class TestADeadProcess:
    @pytest.mark.parametrize(("by", "how"), [("exit", "exited with 7"), ("segfault", "was ended by SIGSEGV")])
    def test_says_how_it_ended_and_its_last_words_and_takes_no_other_curve(
        self, worker, monkeypatch, tmp_path, by, how
    ):
        rows = []
        with pytest.raises(WorkerDied) as raised:  # noqa: PT012  # the rows before the end are wanted too
            for row, _ in worker.run(curve(how="Fatal", by=by)):
                rows.append(row)
        first, _, words = str(raised.value).partition("\n")
        assert first == f"the measuring process {how}; its last words:"
        assert words.startswith("the kernel has lost its mind")
        assert [(row["num_tokens"], row["status"]) for row in rows] == [(1, "verified"), (3, "verified")]
        assert not worker.alive
        monkeypatch.setattr(subprocess_worker, "LAST_WORDS_BYTES", 9)
        with pytest.raises(WorkerDied) as raised:
            list(worker.run(curve()))
        end = str(raised.value).removeprefix(f"{first}\n")
        assert words.endswith(end)
        assert 0 < len(end) <= 9
        other = curve()
        monkeypatch.chdir(tmp_path)
        tmp_path.rmdir()
        with pytest.raises(WorkerDied, match=r"^the folder where kvexp was typed is gone; the measuring pro"):
            list(worker.run(other))


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has that GPU")
def test_a_device_that_is_not_there_is_refused_each_time():
    with Worker("cuda:7") as worker:
        for _ in range(2):
            with pytest.raises(Unsupported, match=r"device=cuda:7 was asked for and this machine has "):
                worker.wait()


def test_a_process_that_hangs_in_c_ends_with_its_parent(tmp_path):
    """Nobody reads its pipe then, whose end would tell it; the kernel ends it."""
    parent = """
import sys
from kvexp.experiment import Experiment
from kvexp.sweep.subprocess_worker import Worker

worker = Worker("cpu")
print(worker._process.pid, flush=True)
worker.wait()
list(worker.run(Experiment.from_json(sys.argv[1])))
"""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    made = curve("workload.num_tokens=[16]")
    target, options = "tests.helpers.faulty_impls.Stuck", {"fifo": str(fifo)}
    asked = replace(made, impl=replace(made.impl, target=target, options=options)).to_json()
    heard = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = subprocess.Popen([sys.executable, "-c", parent, asked], stdout=subprocess.PIPE, text=True)
    try:
        child = int(process.stdout.readline())
        assert select.select([heard], [], [], 120)[0]
        assert os.read(heard, 3) == b"now"
        process.kill()
        process.wait()
        try:
            ended(child, within_s=10)
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
        os.close(heard)


def test_one_that_was_closed_takes_nothing_more_even_where_nobody_can_end_it(monkeypatch):
    monkeypatch.setattr(process, "END_SECONDS", 0.1)
    with Worker("cpu") as one, monkeypatch.context() as unkillable:
        unkillable.setattr(one._process, "kill", lambda: None)
        one.close()
        assert one.left_behind
        assert not one.alive


def test_the_child_s_side_speaks_lines_of_strict_json_and_waits_for_each_word():
    asked, wanted = curve().to_json(), {"num_tokens": [1, 3, 16], "timeout_s": 120}
    done = subprocess.run(
        [sys.executable, "-m", "kvexp.bench.child"],
        input=f"cpu\n[{json.dumps(asked)}]\n{json.dumps(wanted)}\n\n",
        capture_output=True,
        text=True,
    )
    said = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    pairs = zip(said, ["", *said], strict=False)  # each question is a sign of life
    events_once = [event for event, before in pairs if not event == before == "asking"]
    assert events_once == ["ready", "curve", "asking", "asked", "point", "point"]
    assert (done.returncode, done.stderr) == (0, "")
