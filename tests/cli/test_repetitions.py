"""`repeat=`: every curve in each round, every round in an order of its own."""

from dataclasses import replace
from itertools import groupby

import pytest
import yaml

from kvexp.sweep.repetitions import plan_rounds

TYPED = ("impl=torch,cuda,triton", "layout=NHD,HND", "workload=tiny")


def rounds(jobs):
    """The curves of each round, in order."""
    return [
        [(job.experiment.impl.name, job.experiment.layout.name) for job in own]
        for _, own in groupby(jobs, key=lambda job: job.repetition)
    ]


def test_every_round_has_every_curve_once_in_an_order_and_folders_of_its_own(typed):
    outcome = typed(*TYPED, "repeat=4")
    found = rounds(outcome.jobs)
    assert [job.repetition for job in outcome.jobs] == [number for number in range(1, 5) for _ in range(6)]
    assert len({frozenset(own) for own in found}) == 1
    assert len({tuple(own) for own in found}) > 1
    assert outcome.settings.repeat == 4
    assert sorted(int(job.folder.name) for job in outcome.jobs) == list(range(24))
    for job in outcome.jobs:
        kept = yaml.safe_load((job.folder / ".hydra" / "overrides.yaml").read_text())
        assert f"impl={job.experiment.impl.name}" in kept
        assert tuple(kept) == job.words


def test_the_order_is_drawn_from_the_sweeps_name(typed):
    jobs = typed(*TYPED, "repeat=3", "hydra.sweep.dir=sweeps/a/../a").jobs
    curves = sorted(jobs[:6], key=lambda job: int(job.folder.name))

    def draw(name):
        moved = [replace(job, folder=job.folder.parents[1] / name / job.folder.name) for job in curves]
        return rounds(plan_rounds(moved, 3))

    assert draw("a") == rounds(jobs)
    assert any(draw(name) != rounds(jobs) for name in "bc")


def test_one_round_is_in_the_order_in_which_it_was_typed(typed):
    jobs = typed(*TYPED).jobs
    assert [job.folder.name for job in jobs] == list("012345")
    assert {job.repetition for job in jobs} == {None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["repeat=0"], "repeat must be at least 1, not 0"),
        (["repeat=1001"], "repeat must be at most 1000, not 1001"),
        (["repeat=two"], "repeat must be a whole number, not 'two'"),
        (["repeat=1,2"], "repeat has one value for a whole sweep; choose one"),
        (["repeat=2", "isolation=inline"], "repeat needs a new process each time"),
    ],
)
def test_what_is_no_number_of_rounds_is_one_sentence(typed, words, said):
    outcome = typed("impl=torch", "workload=tiny", *words)
    assert outcome.code == 2
    assert said in outcome.err
