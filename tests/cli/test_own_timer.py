"""A timer of a user's own, from tests/conf: a class and a YAML, and nothing in kvexp knows its name."""

import json
from pathlib import Path

import pytest

from kvexp import cli
from kvexp.results.row_file import read
from tests.helpers.step_timer import STEP_US

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "tests" / "conf"
LINE = ("timer=steps", "impl=torch,copy", "workload=tiny", "device=cpu", "tracking=none", "isolation=inline")


def test_is_listed_and_composed_with_the_keys_of_every_timer(typed):
    assert "steps A clock that moves by three microseconds" in " ".join(
        typed("--help", "--config-dir", str(CONF)).out.split()
    )
    outcome = typed("--config-dir", str(CONF), "timer=steps", "timer.warmup=2")
    timer = outcome.jobs[0].experiment.timer
    assert (timer.name, timer.target) == ("steps", "tests.helpers.step_timer.Steps")
    assert timer.options == {**typed("timer=none").jobs[0].experiment.timer.options, "warmup": 2}


def test_without_a_class_it_is_refused(typed, write_own):
    write_own("timer/mine", "# Mine.\nwarmup: 1\n")
    outcome = typed("--config-dir", "my", "timer=mine")
    assert outcome.code == 2
    assert "timer=mine names no class; its YAML needs `_target_: package.Class`" in outcome.err


@pytest.mark.usefixtures("elsewhere")
def test_that_is_not_there_fails_the_command(write_own, capfd):
    write_own("timer/mine", "# Mine.\ndefaults:\n  - auto\n\n_target_: kvexp.timer.nowhere.Sundial\n")
    assert cli.dispatch(["--config-dir", "my", "timer=mine", *LINE[1:]]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "kvexp: kvexp.timer.nowhere.Sundial of mine cannot be found: kvexp.timer.nowhere is no module in "
    )


def test_times_implementations_and_the_equal_copy_and_a_resumed_sweep_recognises_it(elsewhere):
    assert cli.dispatch(["--config-dir", str(CONF), *LINE, "hydra.sweep.dir=home"]) == 0
    rows = read(elsewhere / "home")
    assert [row["impl"] for row in rows] == ["torch"] * 4 + ["copy"] * 4
    for row in rows:
        assert (row["status"], row["timer"]) == ("ok", "steps")
        assert (row["latency_us"], row["copy_us"], row["samples"]) == (STEP_US, STEP_US, 20)
        assert "_target_" not in json.loads(row["timer_options"])
    assert cli.dispatch(["--config-dir", str(CONF), *LINE, "resume=home"]) == 0
    assert read(elsewhere / "home") == rows
