"""What a sweep was composed to measure, counted from its folder."""

import pytest

from kvexp.results.plan import PLAN, count_planned
from kvexp.results.sweep_state import SweepWatcher
from tests.helpers.recorded_rows import curve, plan, row, sweep


@pytest.fixture
def home(tmp_path):
    return tmp_path / "2026-11-21" / "10-00-00-000001"


def count(home, **columns):
    """The points planned, by a report and by a watcher, where a row has these columns."""
    sweep(home, [[row(**columns)]]) if columns else None
    by_report = count_planned([home], [{**row(**columns), "sweep": "2026-11-21/10-00-00-000001"}])
    assert SweepWatcher(home).read(lambda: 0.0).points == by_report
    return by_report


def test_the_points_of_a_curve_are_planned_once_however_often_it_was_composed(home):
    plan(home, 0, [1, 2])
    plan(home, 1, [2, 4])
    plan(home, 2, [1, 2], workload="other")
    plan(home, 3, [1], seed=1)
    assert count(home) == 6


@pytest.mark.parametrize(
    ("columns", "planned"),
    [
        ({"device": "cpu", "mode": "no_graph", "timer": "wall_clock"}, 2),
        ({"device": "cuda:0", "mode": "cudagraph", "timer": "cuda_event"}, 4),
    ],
)
def test_what_auto_means_on_the_machine_is_the_same_curve(home, columns, planned):
    auto = dict.fromkeys(columns, "auto")
    plan(home, 1, [1, 2], **auto)
    plan(home, 2, [1, 2], **auto | {"mode": "no_graph"})
    plan(home, 3, [1, 2], **columns)
    assert count(home, **columns) == planned


def test_the_repetitions_of_a_curve_are_the_most_that_it_was_composed_with(home):
    plan(home, 0, [1, 2], repeat=3)
    plan(home, 1, [2], repeat=5)
    assert SweepWatcher(home).read(lambda: 0.0).points == 8
    assert count_planned([home], []) == 2


def test_a_report_counts_the_plans_of_what_it_reads(home, tmp_path):
    sweep(home, [curve({1: 2.0}), curve({1: 2.0})])
    plan(home, 0, [1, 2], repeat=5)
    plan(home, 1, [1, 2, 4], repeat=5, impl="triton")
    other = home.with_name("other")
    plan(other, 0, [1, 2])
    assert count_planned([home], []) == 5
    assert count_planned([home, home.parent], []) == count_planned([tmp_path], []) == 7
    assert count_planned([home / "1", other], []) == 5
    assert count_planned([home / "1" / "rows.jsonl"], []) == 3
    (tmp_path / "rows.jsonl").touch()
    assert count_planned([tmp_path / "rows.jsonl"], []) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [("{", "["), ('"impl"', '"no"'), ('"cuda"', "{}"), ("[1]", "5"), ("[1]", "[[1]]"), (": 1}", ": 0}")],
)
def test_what_is_no_plan_counts_nothing(home, old, new):
    plan(home, 0, [1, 2])
    plan(home, 1, [1], impl="triton")
    plan(home, 2, [1], impl="cuda", seed=1)
    file = home / "2" / PLAN
    assert count(home) == 4
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    assert count(home) == 3
