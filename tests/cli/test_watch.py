"""`kvexp watch` beside a sweep, in a process of its own."""

import json
import os
import select
import signal
import subprocess
import sys

import pytest

from kvexp.results import sweep_dir
from tests.helpers.recorded_rows import curve, row, sweep


@pytest.fixture
def home(elsewhere):
    made = sweep(elsewhere / "multirun" / "2026-11-21" / "10-00-00-000001", [curve({1: 2.0})])
    sweep_dir.write_command(made, ["impl=cuda"], [])
    return made


@pytest.fixture
def watching(elsewhere):
    """The process, just started."""
    started = []

    def start(*words, **environment):
        command = [sys.executable, "-m", "kvexp", "watch", "--every", "0.1", *words]
        environ = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environ, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_follows_the_last_sweep_and_ends_when_that_ends(home, watching):
    with sweep_dir.hold(home):
        process = watching()
        assert process.stdout.readline().startswith("2026-11-21/10-00-00-000001  points: 1  at work: process")
        with (home / "0" / "rows.jsonl").open("a") as rows:
            rows.write(json.dumps(row(3.0, num_tokens=2)) + "\n")
        assert process.stdout.readline().startswith("2026-11-21/10-00-00-000001  points: 2")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("2026-11-21/10-00-00-000001  points: 2  ended\n")
    assert "3.00 µs" in out


def test_a_terminal_that_draws_nothing_is_followed_line_by_line(home, watching):
    with sweep_dir.hold(home):
        process = watching(TERM="dumb", FORCE_COLOR="1")
        assert select.select([process.stdout], [], [], 30)[0]
        assert process.stdout.readline().startswith("2026-11-21/10-00-00-000001")


def test_ctrl_c_ends_it_and_not_the_sweep(home, watching):
    with sweep_dir.hold(home):
        process = watching(str(home))
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def test_once_shows_a_sweep_at_work_and_ends(home, typed):
    with sweep_dir.hold(home):
        outcome = typed("watch", "--once")
    assert outcome.code == 0
    assert f"points: 1  at work: process {os.getpid()}" in outcome.out
    assert "2.00 µs" in outcome.out


def test_what_is_no_sweep_is_one_sentence(typed, elsewhere):
    for words, said in (
        ((), "there is no sweep below multirun; start one in another terminal"),
        ((str(elsewhere),), "is not the folder of a sweep"),
        (("--every", "0"), "--every 0 must be from 0.1 to 3600 seconds"),
        (("--each",), "unrecognized arguments: --each"),
    ):
        outcome = typed("watch", *words)
        assert (outcome.code, outcome.out) == (2, "")
        assert said in outcome.err
