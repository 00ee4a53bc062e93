"""What a gate and the baseline that it compares with have in common: how both are measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvexp.errors import ConfigError, KvexpError
from kvexp.measurement import is_right
from kvexp.results.merge import PROCESSES, merge_disturbances, merge_repetitions
from kvexp.sweep.runner import Job
from kvexp.sweep.subprocess_worker import Worker

LEAST = 5
"""Processes a curve: of fewer, 2 to 4 % of equal ones are called faster or slower (docs/comparing.md)."""


def completed(words: Sequence[str]) -> list[str]:
    """What was typed, with the usual preset and number of processes where it names no others."""
    keys = {word.lstrip("+~").partition("=")[0] for word in words}
    usual = {"experiment": "gate", "repeat": LEAST}
    return [*(f"{key}={value}" for key, value in usual.items() if key not in keys), *words]


def check(jobs: Sequence[Job]) -> None:
    """Returns when the jobs hold enough processes of each curve, all of one device.

    Raises:
        ConfigError: They do not.
    """
    rounds = max(job.repetition or 1 for job in jobs)
    if rounds < LEAST:
        raise ConfigError(f"repeat={rounds} is too few for a verdict on a small change; type {LEAST} or more")
    devices = sorted({job.experiment.device for job in jobs})
    if len(devices) > 1:
        raise ConfigError(f"each device has a baseline of its own; choose one of {', '.join(devices)}")


def check_kernels(rows: Sequence[Mapping[str, Any]]) -> None:
    """Returns when every process measured the same sources of each implementation.

    Raises:
        ConfigError: A file of one was edited between two processes: the medians of both say nothing.
    """
    found: dict[str, set[str]] = {}
    for row in rows:
        if is_right(row["status"]) and row.get("impl_hash"):
            found.setdefault(row["impl"], set()).add(row["impl_hash"])
    changed = sorted(impl for impl, hashes in found.items() if len(hashes) > 1)
    if changed:
        raise ConfigError(
            f"the sources of impl={', '.join(changed)} were changed while they were measured; measure again"
        )


def doubts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a baseline of these rows may be a poor one, a sentence each; empty where nothing says so."""
    timed = [row for row in rows if row["status"] == "ok"]
    said = []
    if found := [row for row in timed if merge_disturbances([row])]:
        why = ", ".join(f"{column} {value}" for column, value in merge_disturbances(found).items())
        said.append(
            f"the GPU was disturbed in {len(found)} of the baseline's {len(timed)} measurements ({why}), "
            "so a gate may find its points faster or ambiguous; kvexp baseline measures again"
        )
    points = merge_repetitions(rows)
    if few := [point for point in points if 0 < point[PROCESSES] < LEAST]:
        said.append(
            f"{len(few)} of the baseline's {len(points)} points were timed by fewer than {LEAST} processes"
        )
    return said


def machine(device: str) -> dict[str, Any]:
    """The columns about the machine that a row measured on this device would have, and which device it is.

    Raises:
        ConfigError: The machine has no such device, or the process that looks for it died.
    """
    with Worker(device) as worker:
        try:
            worker.wait()
        except KvexpError as error:
            raise ConfigError(str(error)) from error
        return {**worker.environment, "device": worker.device}
