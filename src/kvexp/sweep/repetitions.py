"""Plan repetitions: curves are measured in rounds, each in a process and an order of its own."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace

from kvexp.sweep.job import Job

_HYDRA = ".hydra"


def plan_rounds(jobs: Sequence[Job], repeat: int) -> list[Job]:
    """Return the jobs of every round, one after another.

    A round has all curves in random order, so that drift during a sweep (clocks, heat) affects all curves
    alike. The order is seeded with the name of the sweep's folder: a sweep that is resumed keeps it. The jobs
    are each curve once, its folder a number; from the second round on each gets a folder of its own with a
    copy of what Hydra wrote.
    """
    if repeat == 1:
        return list(jobs)
    chance = random.Random("/".join(jobs[0].folder.parts[-3:-1]))
    planned: list[Job] = []
    for number in range(repeat):
        turn = [_repeat(job, number, number * len(jobs)) for job in jobs]
        chance.shuffle(turn)
        planned += turn
    return planned


def _repeat(job: Job, number: int, offset: int) -> Job:
    folder = job.folder.with_name(str(int(job.folder.name) + offset))
    if number and (job.folder / _HYDRA).is_dir():
        shutil.copytree(job.folder / _HYDRA, folder / _HYDRA, dirs_exist_ok=True)
    return replace(job, folder=folder, repetition=number + 1)
