"""A baseline and gates against it, really measured, each curve by two processes instead of five."""

import os
from pathlib import Path

import pytest

from kvexp import cli, results, sweep
from kvexp.cli import gating
from kvexp.cli.commands import gate
from kvexp.rows import RIGHT, repetition
from tests.measured import curve

ROOT = Path(__file__).parents[2]
CURVE = (
    *("impl=changing", "layout=NHD,HND", "kv_cache_dtype=auto", "workload=tiny", "workload.num_tokens=[4]"),
    *("device=cpu", "tracking=none", "timer.max_seconds=0.02", "--config-dir", "my_conf"),
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with a baseline of this machine."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "my_conf" / "impl").mkdir(parents=True)
    (folder / "my_conf" / "impl" / "changing.yaml").write_text(
        "# Changes.\n_target_: tests.changing.Changing\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        _go(patched, folder)
        assert cli.dispatch(["baseline", *CURVE]) == 0
    return folder


@pytest.fixture
def there(measured, monkeypatch):
    _go(monkeypatch, measured)
    return measured


def _go(patched, folder):
    patched.chdir(folder)
    patched.setattr(gating, "LEAST", 2)
    patched.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    patched.delenv("KERNEL", raising=False)


def test_a_baseline_holds_the_right_rows_of_every_process(there):
    (file,) = there.glob("baselines/*/rows.jsonl")
    rows = results.read([file], there)
    assert [(row["layout"], repetition(row)) for row in rows] == [
        ("NHD", 1), ("NHD", 2), ("HND", 1), ("HND", 2),
    ]  # fmt: skip
    assert {row["status"] for row in rows} <= set(RIGHT)
    assert file.parent.name == file.parent.name.lower().replace(" ", "-")
    assert rows[0]["host"] == os.uname().nodename


def test_the_same_kernel_passes(there, capfd):
    assert cli.dispatch(["gate", *CURVE, "--tolerance", "0.9"]) == 0
    out = capfd.readouterr().out
    assert "baseline (µs)" in out
    assert "slower" not in out


@pytest.mark.parametrize(("change", "verdict"), [("slower", "slower"), ("wrong", "broken")])
def test_a_kernel_that_got_worse_does_not(there, monkeypatch, capfd, change, verdict):
    monkeypatch.setenv("KERNEL", change)
    assert cli.dispatch(["gate", *CURVE, "--tolerance", "0.9"]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == f"2 {verdict}"


def test_of_what_is_wrong_no_baseline_is_written(there, monkeypatch, capfd):
    before = [file.read_bytes() for file in there.glob("baselines/*/*")]
    monkeypatch.setenv("KERNEL", "wrong")
    assert cli.dispatch(["baseline", *CURVE]) == 1
    assert "no baseline is written of a sweep in which not everything is right" in capfd.readouterr().err
    assert [file.read_bytes() for file in there.glob("baselines/*/*")] == before


def test_of_what_was_only_verified_no_baseline_is_written(there, capfd):
    assert cli.dispatch(["baseline", *CURVE, "timer=none"]) == 2
    assert "nothing was timed, so there is no baseline to write" in capfd.readouterr().err


@pytest.fixture
def elsewhere_unmeasured(elsewhere, monkeypatch):
    """An empty folder in which nothing may be measured."""

    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(sweep, "run", refuse)
    return elsewhere


TORCH = ("impl=torch", "workload=tiny", "device=cpu")


def test_a_machine_without_a_baseline_is_told_before_anything_is_measured(elsewhere_unmeasured, capfd):
    assert cli.dispatch(["gate", *TORCH]) == 2
    assert " has no baseline (baselines/" in capfd.readouterr().err
    assert not list(elsewhere_unmeasured.iterdir())


def test_a_baseline_under_another_driver_is_refused_before_anything_is_measured(
    elsewhere_unmeasured, monkeypatch, capfd
):
    machine = {"device_name": "NVIDIA H200", "driver": "590.1"}
    monkeypatch.setattr(gating, "machine", lambda device: machine)
    monkeypatch.setattr(gate.results, "read", lambda *_: curve({64: 1.0}))
    Path("baselines/nvidia-h200").mkdir(parents=True)
    assert cli.dispatch(["gate", *TORCH]) == 2
    assert "the baseline's driver is 580.1 and the candidate's 590.1" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["gate", "baseline"])
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["repeat=4"], "repeat=4 is too few for a verdict on a small change; type 5 or more"),
        (["device=cpu,cuda:0"], "each device has a baseline of its own; choose one of cpu, cuda:0"),
        (["impl=cuda", "impl=triton"], "impl is typed twice"),
        (["workload=tinny"], "unknown workload 'tinny'"),
    ],
)
def test_what_is_typed_wrong_is_one_sentence(elsewhere_unmeasured, capfd, command, typed, said):
    words = [word for word in TORCH if not any(word.partition("=")[0] in other for other in typed)]
    assert cli.dispatch([command, *words, *typed]) == 2
    assert said in capfd.readouterr().err
    assert not list(elsewhere_unmeasured.iterdir())


def test_a_device_that_is_not_there_is_one_sentence(elsewhere_unmeasured, capfd):
    assert cli.dispatch(["gate", "impl=torch", "workload=tiny", "device=cuda:77"]) == 2
    assert "device=cuda:77 was asked for and this machine has" in capfd.readouterr().err


def test_what_only_prints_measures_nothing(elsewhere_unmeasured, capfd):
    assert cli.dispatch(["gate", "impl=torch", "layout=NHD", "kv_cache_dtype=auto", "--cfg", "job"]) == 0
    assert "repeat: 5\n" in capfd.readouterr().out


def test_the_preset_and_five_processes_are_what_is_not_typed():
    assert gating.completed(["impl=mine"]) == ["experiment=gate", "repeat=5", "impl=mine"]
    assert gating.completed(["repeat=7", "experiment=x"]) == ["repeat=7", "experiment=x"]
