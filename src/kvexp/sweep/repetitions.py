"""Curves that are measured several times: in rounds, each in a process and an order of its own."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace

from kvexp.sweep.runner import Job

_HYDRA = ".hydra"


def rounds(jobs: Sequence[Job], repeat: int) -> list[Job]:
    """The jobs of every round, one after another.

    A round is a block of all curves in random order, so that what drifts while a sweep runs (clocks, heat)
    falls on no curve more than on another. The order is drawn from the name of the sweep's folder: a sweep
    that is resumed keeps it.

    Args:
        jobs: Each curve once, its folder a number.
        repeat: How many rounds.

    Returns:
        The jobs; from the second round on each with a folder of its own, which holds what Hydra wrote.
    """
    if repeat == 1:
        return list(jobs)
    chance = random.Random("/".join(jobs[0].folder.parts[-3:-1]))
    found: list[Job] = []
    for number in range(repeat):
        turn = [_again(job, number, number * len(jobs)) for job in jobs]
        chance.shuffle(turn)
        found += turn
    return found


def _again(job: Job, number: int, later: int) -> Job:
    folder = job.folder.with_name(str(int(job.folder.name) + later))
    if number and (job.folder / _HYDRA).is_dir():
        shutil.copytree(job.folder / _HYDRA, folder / _HYDRA, dirs_exist_ok=True)
    return replace(job, folder=folder, repetition=number + 1)
