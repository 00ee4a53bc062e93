"""A baseline and gates against it, really measured, each curve by two processes instead of five."""

import errno
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from kvexp import cli
from kvexp.cli import gate_rules
from kvexp.cli.commands import gate
from kvexp.measurement import is_right
from kvexp.results import baselines, load
from kvexp.results.point_identity import get_repetition
from kvexp.results.row_file import RowFile
from kvexp.sweep import runner
from tests.helpers import fake_sweep
from tests.helpers.recorded_rows import curve, refused

ROOT = Path(__file__).parents[2]
CURVE = (
    *("impl=changing", "layout=NHD,HND", "kv_cache_dtype=auto", "workload=tiny", "workload.num_tokens=[4]"),
    *("device=cpu", "tracking=none", "timer.max_seconds=0.02", "--config-dir", "my_conf"),
)


describe_machine = cache(gate_rules.describe_machine)
"""Starts one process for all tests."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with a baseline of this machine."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "my_conf" / "impl").mkdir(parents=True)
    (folder / "my_conf" / "impl" / "changing.yaml").write_text(
        "# Changes.\n_target_: tests.helpers.changing_impl.Changing\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        _go(patched, folder)
        assert cli.dispatch(["baseline", *CURVE]) == 0
    return folder


@pytest.fixture
def gate_dir(measured, monkeypatch):
    """Give that folder; its curves are measured here, since a process for each takes seconds."""
    _go(monkeypatch, measured)
    monkeypatch.setattr(gate_rules, "describe_machine", describe_machine)
    open_sweep = runner.open_sweep
    monkeypatch.setattr(
        runner,
        "open_sweep",
        lambda home, settings, *others: open_sweep(home, replace(settings, isolation="inline"), *others),
    )
    return measured


def _go(patched, folder):
    patched.chdir(folder)
    patched.setattr(gate_rules, "MIN_PROCESSES", 2)
    patched.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    patched.delenv("KERNEL", raising=False)
    # What is kept of the kernel is kept for its source, whatever KERNEL was.
    patched.setenv("KVEXP_CACHE_DIR", str(folder / "cache"))


def test_a_baseline_holds_the_right_rows_of_every_process(gate_dir):
    (file,) = gate_dir.glob("baselines/*/rows.jsonl")
    rows = load.read([file], gate_dir)
    assert [(row["layout"], get_repetition(row)) for row in rows] == [
        ("NHD", 1), ("NHD", 2), ("HND", 1), ("HND", 2),
    ]  # fmt: skip
    assert all(is_right(row["status"]) for row in rows)
    assert file.parent.name == file.parent.name.lower().replace(" ", "-")
    assert rows[0]["host"] == os.uname().nodename


def test_a_baseline_that_could_not_be_written_is_not_measured(gate_dir, monkeypatch, tmp_path, capfd):
    fake_sweep.put(monkeypatch, opened=lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(gate_rules, "check_jobs", lambda jobs: None)
    monkeypatch.setattr(baselines, "ROOT", tmp_path / "file")
    (tmp_path / "file").write_text("no folder")
    assert cli.dispatch(["baseline", *CURVE]) == 2
    said = f"kvexp: baseline: {tmp_path / 'file'} cannot be written to, so nothing was measured\n"
    assert capfd.readouterr().err.endswith(said)


def test_a_baseline_of_other_curves_is_told_before_anything_is_measured(gate_dir, monkeypatch, capfd):
    fake_sweep.put(monkeypatch, opened=lambda *_: pytest.fail("measured"))
    before = list(gate_dir.rglob("*"))
    for other in ("workload.num_tokens=[8]", "dtype=half"):
        words = [word for word in CURVE if word.partition("=")[0] != other.partition("=")[0]]
        assert cli.dispatch(["gate", *words, other]) == 2
        assert "the two share no case" in capfd.readouterr().err
    assert list(gate_dir.rglob("*")) == before


def test_a_gate_whose_processes_differ_much_says_that_it_saw_little(gate_dir, monkeypatch, capfd):
    """Latencies that scatter a hundredfold, of a kernel that did not change."""
    append = RowFile.append

    def scattered(self, row, *others):
        append(self, row | {"latency_us": 5.0 if get_repetition(row) == 1 else 500.0}, *others)

    monkeypatch.setattr(RowFile, "append", scattered)
    assert cli.dispatch(["gate", *CURVE, "--tolerance", "0.01"]) == 0
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == "2 ambiguous"
    assert "kvexp: 2 of 2 points are ambiguous: " in said.err


def test_a_point_that_one_process_skipped_is_missing(gate_dir, monkeypatch, capfd):
    last, append = [], RowFile.append

    def skipped(self, row, *others):
        last.append(row)
        refusal = {"status": "skipped", "reason": "no room"} if len(last) == 4 else {}
        append(self, row | refusal, *others)

    monkeypatch.setattr(RowFile, "append", skipped)
    assert cli.dispatch(["gate", *CURVE, "--tolerance", "0.9"]) == 1
    out = capfd.readouterr().out
    assert "in 1 of 2 processes skipped: no room" in out
    assert "1 missing" in out.splitlines()[-1]


def test_a_baseline_of_a_disturbed_machine_or_of_fewer_processes_is_written_with_a_word(
    gate_dir, monkeypatch, capfd, tmp_path
):
    _go(monkeypatch, tmp_path)
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(gate_dir / "cache"))
    (tmp_path / "my_conf").symlink_to(gate_dir / "my_conf")
    last, append = [], RowFile.append

    def disturbed(self, row, *others):
        last.append(row)
        changes = {1: {"throttled": "heat", "other_processes": 2}, 4: {"status": "skipped", "reason": "no"}}
        append(self, row | changes.get(len(last), {}), *others)

    monkeypatch.setattr(RowFile, "append", disturbed)
    assert cli.dispatch(["baseline", *CURVE]) == 0
    said = capfd.readouterr()
    assert list(tmp_path.glob("baselines/*/rows.jsonl"))
    doubts = [line for line in said.err.splitlines() if "of the baseline's" in line]
    assert doubts[0].startswith("kvexp: the GPU was disturbed in 1 of the baseline's 3 measurements (")
    assert "throttled heat, other_processes 2" in doubts[0]
    assert doubts[1] == "kvexp: 1 of the baseline's 2 points were timed by fewer than 2 processes"


@pytest.mark.usefixtures("gate_dir")
def test_the_same_kernel_passes(capfd):
    assert cli.dispatch(["gate", *CURVE, "--tolerance", "0.9"]) == 0
    out = capfd.readouterr().out
    assert "baseline (µs)" in out
    assert "slower" not in out


@pytest.mark.parametrize(("change", "verdict"), [("slower", "slower"), ("wrong", "broken")])
def test_a_kernel_that_got_worse_does_not(gate_dir, monkeypatch, capfd, change, verdict):
    monkeypatch.setenv("KERNEL", change)
    assert cli.dispatch(["gate", *CURVE, "--tolerance", "0.9"]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == f"2 {verdict}"


def test_a_sweep_whose_rows_cannot_all_be_written_does_not_pass(gate_dir, monkeypatch, capfd):
    """The disk is full before the last of the four rows: of each curve something right is there."""
    written, append = [], RowFile.append

    def until_full(self, row, *others):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(row)
        append(self, row, *others)

    monkeypatch.setattr(RowFile, "append", until_full)
    assert cli.dispatch(["gate", *CURVE, "--tolerance", "0.9"]) == 1
    assert "No space left on device" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["gate", "baseline"])
def test_a_kernel_that_was_edited_between_two_processes_is_two(gate_dir, monkeypatch, capfd, command):
    hashes, append = iter("aabb"), RowFile.append
    monkeypatch.setattr(
        RowFile, "append", lambda self, row, *others: append(self, row | {"impl_hash": next(hashes)}, *others)
    )
    before = [file.read_bytes() for file in gate_dir.glob("baselines/*/*")]
    assert cli.dispatch([command, *CURVE]) == 2
    assert "impl=changing were changed while they were measured; measure again" in capfd.readouterr().err
    assert [file.read_bytes() for file in gate_dir.glob("baselines/*/*")] == before


def test_of_what_is_wrong_no_baseline_is_written(gate_dir, monkeypatch, capfd):
    before = [file.read_bytes() for file in gate_dir.glob("baselines/*/*")]
    monkeypatch.setenv("KERNEL", "wrong")
    assert cli.dispatch(["baseline", *CURVE]) == 1
    assert "no baseline is written, since not every point of the sweep is right" in capfd.readouterr().err
    assert [file.read_bytes() for file in gate_dir.glob("baselines/*/*")] == before


def test_of_what_was_only_verified_no_baseline_is_written(gate_dir, capfd):
    assert cli.dispatch(["baseline", *CURVE, "timer=none"]) == 2
    assert "nothing was timed, so there is no baseline to write" in capfd.readouterr().err


@pytest.fixture
def elsewhere_unmeasured(elsewhere, monkeypatch):
    """An empty folder in which nothing may be measured."""
    fake_sweep.put(monkeypatch, opened=lambda *_: pytest.fail("measured"))
    return elsewhere


TORCH = ("impl=torch", "layout=NHD", "kv_cache_dtype=auto", "workload=tiny", "device=cpu")


def test_a_machine_without_a_baseline_is_told_before_anything_is_measured(elsewhere_unmeasured, capfd):
    assert cli.dispatch(["gate", *TORCH]) == 2
    assert " has no baseline (baselines/" in capfd.readouterr().err
    assert not list(elsewhere_unmeasured.iterdir())


def test_a_baseline_under_another_driver_is_refused_before_anything_is_measured(
    elsewhere_unmeasured, monkeypatch, capfd
):
    machine = {"device_name": "NVIDIA H200", "driver": "590.1"}
    monkeypatch.setattr(gate_rules, "describe_machine", lambda device: machine)
    monkeypatch.setattr(gate.load, "read", lambda *_: curve({64: 1.0}))
    Path("baselines/nvidia-h200").mkdir(parents=True)
    assert cli.dispatch(["gate", *TORCH]) == 2
    assert "the baseline's driver is 580.1 and the candidate's 590.1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "baselines/nvidia-h200 holds no whole row"),
        ([refused("verified", "interpreted")], "baselines/nvidia-h200 holds nothing that was timed"),
    ],
)
def test_a_baseline_of_nothing_timed_is_told_before_anything_is_measured(
    elsewhere_unmeasured, monkeypatch, capfd, rows, said
):
    machine = {"device_name": "NVIDIA H200", "driver": "580.1"}
    monkeypatch.setattr(gate_rules, "describe_machine", lambda device: machine)
    Path("baselines/nvidia-h200").mkdir(parents=True)
    Path("baselines/nvidia-h200/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.dispatch(["gate", *TORCH]) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "typed", "said"),
    [
        ("gate", ["repeat=4"], "repeat=4 is too few for a verdict on a small change; type 5 or more"),
        (
            "baseline",
            ["device=cpu,cuda:0"],
            "each device has a baseline of its own; choose one of cpu,",
        ),
        ("gate", ["impl=cuda", "impl=triton"], "impl is typed twice"),
        ("baseline", ["workload=tinny"], "unknown workload 'tinny'"),
    ],
)
def test_what_is_typed_wrong_is_one_sentence(elsewhere_unmeasured, capfd, command, typed, said):
    words = [word for word in TORCH if not any(word.partition("=")[0] in other for other in typed)]
    assert cli.dispatch([command, *words, *typed]) == 2
    assert said in capfd.readouterr().err
    assert not list(elsewhere_unmeasured.iterdir())


def test_a_device_that_is_not_there_is_one_sentence(elsewhere_unmeasured, capfd):
    assert cli.dispatch(["gate", *TORCH[:-1], "device=cuda:77"]) == 2
    assert "device=cuda:77 was asked for and this machine has" in capfd.readouterr().err


def test_what_only_prints_measures_nothing(elsewhere_unmeasured, capfd):
    assert cli.dispatch(["gate", "impl=torch", "layout=NHD", "kv_cache_dtype=auto", "--cfg", "job"]) == 0
    assert "repeat: 5\n" in capfd.readouterr().out


def test_the_preset_and_five_processes_are_what_is_not_typed():
    assert gate_rules.add_defaults(["impl=mine"]) == ["experiment=gate", "repeat=5", "impl=mine"]
    assert gate_rules.add_defaults(["repeat=7", "experiment=x"]) == ["repeat=7", "experiment=x"]
