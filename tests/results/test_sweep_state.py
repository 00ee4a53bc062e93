"""A sweep at work, read from its folder and drawn."""

import io
import json
import os
from datetime import datetime, timedelta

import pytest
from rich.console import Console

from kvexp.errors import ConfigError
from kvexp.report import live
from kvexp.results import sweep_dir
from kvexp.results.sweep_state import State, SweepWatcher
from tests.helpers.recorded_rows import curve, plan, refused, row, sweep

START = datetime.fromisoformat("2026-11-21T10:00:00+00:00")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "2026-11-21" / "10-00-00-000001"


def at(seconds, **columns):
    return row(started_at=(START + timedelta(seconds=seconds)).isoformat(), **columns)


def look(home, seconds=0.0):
    return SweepWatcher(home).read(lambda: START.timestamp() + seconds)


def text(state, now=START, **size):
    console = Console(file=io.StringIO(), width=120, **size)
    console.print(live.render_state(state, now, console))
    return console.file.getvalue()


def test_the_points_planned_are_those_of_every_composed_job(home):
    sweep(home, [curve({1: 2.0, 2: 3.0})])
    plan(home, 0, [1, 2, 4])
    plan(home, 1, [8], impl="triton")
    state = look(home)
    assert (len(state.rows), state.points) == (2, 4)
    assert state.size(state.curves[0]) == 3


def test_the_plan_of_before_a_key_or_an_option_was_there_is_read(home):
    sweep(home, [curve({1: 2.0, 2: 3.0}, impl="cuda", impl_options='{"unroll":4}')])
    plan(home, 0, [1, 2, 4], impl_options='{"unroll":4}')
    file = home / "0" / ".hydra" / "plan.json"
    content = json.loads(file.read_text())
    for key in ("tp_to", "seed"):
        del content["curve"][key]
    file.write_text(json.dumps(content))
    state = look(home)
    assert state.size(state.curves[0]) == 3


def test_every_repetition_is_planned_and_counted(home):
    sweep(home, [curve({1: 2.0}, repetition=1), curve({1: 4.0}, repetition=2), curve({1: 3.0}, repetition=3)])
    for number in range(3):
        plan(home, number, [1], repeat=3)
    state = look(home)
    assert (len(state.rows), state.points) == (3, 3)
    assert [point["latency_us"] for (point,) in state.curves] == [3.0]


def test_without_plans_the_number_of_points_is_unknown(home):
    sweep(home, [curve({1: 2.0})])
    state = look(home)
    assert (state.points, state.seconds_left) == (None, None)
    assert live.describe_progress(state, START) == "2026-11-21/10-00-00-000001  points: 1  ended"


def test_the_estimate_uses_the_points_of_this_run(home):
    rows = [at(-500, num_tokens=1), *(at(10 * n, num_tokens=2**n) for n in range(1, 4))]
    sweep(home, [[*rows, at(31, num_tokens=16, status="skipped")]])
    plan(home, 0, [1, 2, 4, 8, 16, 32, 64])
    with sweep_dir.hold(home):
        os.utime(home / sweep_dir.LOCK, times=(START.timestamp(), START.timestamp()))
        state = look(home, seconds=34)
    # Every 10 s one is begun, the last at 30: it ends at 40, and the two that are left at 60.
    assert state.seconds_left == pytest.approx(26)
    assert state.worker == f"process {os.getpid()}"
    assert "5/7 points  about 0:26 left, until 10:00:26" in live.describe_progress(state, START)


def test_two_points_are_too_few_for_an_estimate(home):
    sweep(home, [[at(1, num_tokens=1), at(2, num_tokens=2)]])
    plan(home, 0, [1, 2, 4])
    with sweep_dir.hold(home):
        os.utime(home / sweep_dir.LOCK, times=(START.timestamp(), START.timestamp()))
        state = look(home)
    assert state.seconds_left is None
    assert live.describe_progress(state, START).endswith(f"2/3 points  at work: process {os.getpid()}")


def test_a_line_that_is_being_written_is_left_for_the_next_look(home):
    file = sweep(home, [curve({1: 2.0})]) / "0" / "rows.jsonl"
    watched, line = SweepWatcher(home), json.dumps(row(3.0, num_tokens=2)) + "\n"
    seen = []
    for part in ("", line[:100], line[100:]):
        with file.open("a") as rows:
            rows.write(part)
        seen.append(len(watched.read(lambda: 0.0).rows))
    assert seen == [1, 1, 2]


def test_a_file_that_holds_no_rows_is_one_sentence(home):
    (sweep(home, [curve({1: 2.0})]) / "0" / "rows.jsonl").write_text("[1]\n{}\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 1"):
        look(home)


def test_the_curves_so_far_and_the_last_rows_with_their_reasons_are_drawn(home):
    none = refused("skipped", "it needs\na GPU", impl="triton", num_tokens=1)
    sweep(home, [curve({1: 1.0, 2: 10.0, 4: 100.0}), [none]])
    plan(home, 0, [1, 2, 4, 8, 16])
    lines = [line.split() for line in text(look(home)).splitlines()]
    assert ["cuda", "3/5", "▁▅█··", "1", "…", "4", "1.00", "…", "100", "100", "500", "%"] in lines
    assert ["triton", "1/1", "s", "1", "–", "–", "–"] in lines
    assert ["10:00:00", "triton", "1", "skipped:", "it", "needs", "a", "GPU"] in lines
    assert ["10:00:00", "cuda", "4", "100", "µs"] in lines


def test_of_more_curves_than_the_terminal_is_high_the_newest_are_drawn(home):
    sweep(home, [curve({1: 1.0}, seed=seed) for seed in range(30)])
    drawn = text(look(home), force_terminal=True, height=20, color_system=None)
    assert "21 curves before these" in drawn
    assert "seed=29" in drawn
    assert "seed=20" not in drawn
    assert len(drawn.splitlines()) <= 20


def test_a_sweep_without_rows_is_one_line():
    state = State("a/b", "process 7", (), 12, {}, None)
    assert text(state).splitlines() == ["a/b  0/12 points  at work: process 7"]
