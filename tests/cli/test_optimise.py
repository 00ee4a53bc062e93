"""A sweeper that optimises is told a number for each curve: Optuna, and processes that measure nothing."""

import json
import math
import os
import re
from pathlib import Path

import pytest
import yaml

from kvexp import cli
from kvexp.cli import measuring
from kvexp.errors import ConfigError
from kvexp.results import row_file
from kvexp.sweep import subprocess_worker
from kvexp.sweep.objective import Objective
from tests.helpers.recorded_rows import row

OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=1", "tracking=none", "workload=tiny")
LIGHT = ("--config-dir", "my", "impl=light")


@pytest.fixture
def light(elsewhere, write_own, monkeypatch):
    """An implementation whose latency is its option's."""
    write_own("impl/light", "# Nothing.\n_target_: some.where.Light\nlatency_us: 3.0\n")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    monkeypatch.setattr(subprocess_worker, "CHILD", "tests.helpers.light_child")
    monkeypatch.setattr(measuring, "ROUNDS", 3)
    return elsewhere


def read_rows(folder):
    (sweep,) = folder.glob("multirun/*/*")
    return row_file.read(sweep)


def test_several_batches_are_one_sweep_whose_best_is_measured_again_beside_the_default(light, capfd):
    words = ("impl.latency_us=choice(1.0,2.0,4.0)", "hydra.sweeper.n_trials=8")
    assert cli.dispatch([*LIGHT, *OPTUNA, *words]) == 0
    rows = read_rows(light)
    trials = {row["impl_options"] for row in rows if not row.get("repetition")}
    assert len([row for row in rows if not row.get("repetition")]) == 4 * len(trials)
    again = [row for row in rows if row.get("repetition")]
    assert {(row["impl_options"], row.get("repetition")) for row in again} == {
        (options, number) for options in ('{"latency_us":1.0}', '{"latency_us":3.0}') for number in (1, 2, 3)
    }
    assert len({row["host"] for row in again}) == 3  # a process a round
    # Also the first batch, of one curve, is named by what the sweeper may choose.
    assert all(row["curve"] == f"latency_us={json.loads(row['impl_options'])['latency_us']}" for row in rows)
    out, err = capfd.readouterr()
    assert "the best of 8 trials (impl.latency_us=1.0) beside the default, 3 processes each:" in err
    assert re.search(r"faster +light NHD bfloat16 +50 +150 +50\.0 +0\.333", out)
    assert out.count("curve") == 2  # one table of all trials, and the comparison
    (found,) = light.glob("multirun/*/*/optimization_results.yaml")
    assert yaml.safe_load(found.read_text())["best_params"] == {"impl.latency_us": 1.0}


@pytest.mark.parametrize(
    ("objective", "direction", "value"),
    [("latency_us@50", "minimize", 100.0), ("copy_fraction@16", "maximize", 1 / 32)],
)
def test_the_number_is_what_objective_says(light, objective, direction, value):
    words = ("impl.latency_us=interval(2.0,2.0)", "hydra.sweeper.n_trials=2", f"objective={objective}")
    assert cli.dispatch([*LIGHT, *OPTUNA, *words, f"hydra.sweeper.direction={direction}"]) == 0
    (found,) = light.glob("multirun/*/*/optimization_results.yaml")
    assert yaml.safe_load(found.read_text())["best_value"] == pytest.approx(value)


def test_where_the_default_is_the_best_it_is_said_and_not_measured_again(light, capfd):
    words = ("impl.latency_us=choice(3.0,5.0)", "hydra.sweeper.n_trials=4")
    assert cli.dispatch([*LIGHT, *OPTUNA, *words]) == 0
    assert "of 4 trials the default is the best (impl.latency_us=3.0)" in capfd.readouterr().err
    assert not any(row.get("repetition") for row in read_rows(light))


def test_repeat_says_how_many_processes_measure_the_best_again(light, capfd):
    words = ("impl.latency_us=choice(1.0,2.0)", "hydra.sweeper.n_trials=2", "repeat=2")
    assert cli.dispatch([*LIGHT, *OPTUNA, *words]) == 0
    assert {row.get("repetition") for row in read_rows(light)} == {None, 1, 2}
    assert "2 processes each:" in capfd.readouterr().err


def test_where_nothing_was_timed_there_is_no_best(light, capfd):
    words = ("impl.latency_us=choice(0,0.0)", "hydra.sweeper.n_trials=2")
    assert cli.dispatch([*LIGHT, *OPTUNA, *words]) == 0
    assert "none of 2 trials was timed, so there is no best one" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/sweeper=optunaa"], "unknown hydra/sweeper 'optunaa' (did you mean optuna?)"),
        (["hydra/sweeper=optuna,product"], "a sweep has one sweeper; choose one"),
        ([*OPTUNA, "objective=speed"], "objective must be COLUMN or COLUMN@NUM_TOKENS, as latency_us@4096"),
        ([*OPTUNA, "objective=latency_us@0"], "objective must be COLUMN or COLUMN@NUM_TOKENS"),
        ([*OPTUNA, "objective=status"], "objective must be COLUMN or COLUMN@NUM_TOKENS"),
        (
            [*OPTUNA, "objective=copy_fraction"],
            "objective=copy_fraction is best where it is largest; type hydra.sweeper.direction=maximize",
        ),
        (
            [*OPTUNA, "hydra.sweeper.direction=maximize"],
            "objective=latency_us is best where it is smallest; type hydra.sweeper.direction=minimize",
        ),
        (
            [*OPTUNA, "objective=latency_us@7", "layout=NHD,HND"],
            "objective=latency_us@7 is no point of the curve: its num_tokens are 1, 3, 16, 50",
        ),
        (["objective=gb_per_s"], "objective=gb_per_s is for a sweeper that optimises"),
        ([*OPTUNA, "hydra/launcher=basic"], "'hydra/launcher=basic' would run each curve by itself"),
        ([*OPTUNA, "impl.tile=choice(1,2)"], "unknown key impl.tile"),
        (["workload.num_heads=interval(1,5)"], "or choose a sweeper that optimises (hydra/sweeper=optuna)"),
    ],
)
def test_what_cannot_be_optimised_is_refused_before_anything_is_measured(typed, words, said):
    outcome = typed("impl=torch", *words)
    assert outcome.code == 2
    assert said in outcome.err
    assert not outcome.jobs
    assert outcome.folders == []


def test_resume_is_refused(light, capfd):
    words = ("impl.latency_us=choice(1.0,2.0)", "hydra.sweeper.n_trials=2")
    assert cli.dispatch([*LIGHT, *OPTUNA, *words]) == 0
    before = read_rows(light)
    assert cli.dispatch([*LIGHT, *OPTUNA, *words, "resume=true"]) == 2
    assert "resume is refused beside a sweeper that optimises" in capfd.readouterr().err
    assert read_rows(light) == before


@pytest.mark.parametrize(
    ("text", "value"),
    [("latency_us", 4.0), ("latency_us@8", 8.0), ("latency_us@2", 2.0), ("latency_us@4", math.inf)],
)
def test_an_objective_is_a_mean_or_the_value_of_one_point(text, value):
    rows = [row(2.0, num_tokens=2), row(8.0, num_tokens=8)]
    assert Objective.parse(text).compute(rows, [2, 8]) == pytest.approx(value)


def test_a_curve_with_a_point_that_was_not_timed_is_the_worst():
    rows = [row(2.0, num_tokens=2), row(num_tokens=8, status="failed", copy_fraction=None)]
    assert Objective.parse("latency_us").compute(rows, [2, 8]) == math.inf
    assert Objective.parse("latency_us@2").compute(rows, [2, 8]) == 2.0
    assert Objective.parse("copy_fraction").compute(rows, [2, 8]) == -math.inf
    assert Objective.parse("latency_us").compute([], [2, 8]) == math.inf


def test_a_wrong_objective_names_the_columns():
    with pytest.raises(ConfigError, match=r"one of latency_us, .*host_us, gb_per_s, copy_fraction$"):
        Objective.parse("latency")
