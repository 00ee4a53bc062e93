"""How a gate and its baseline are measured: enough processes, one device, one version of each kernel."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvexp.errors import ConfigError, KvexpError
from kvexp.measurement import is_right
from kvexp.results.merge import PROCESSES, merge_disturbances, merge_repetitions
from kvexp.sweep.job import Job
from kvexp.sweep.subprocess_worker import Worker

MIN_PROCESSES = 5
"""Per curve: with fewer, a change of 3 % (8 % below 512 tokens) is not found (docs/comparing.md)."""


def add_defaults(words: Sequence[str]) -> list[str]:
    """Put experiment=gate and repeat= before what was typed, unless it has its own."""
    keys = {word.lstrip("+~").partition("=")[0] for word in words}
    usual = {"experiment": "gate", "repeat": MIN_PROCESSES}
    return [*(f"{key}={value}" for key, value in usual.items() if key not in keys), *words]


def check_jobs(jobs: Sequence[Job]) -> None:
    """Check that the jobs measure each curve in enough processes, on one device.

    Raises:
        ConfigError: They do not.
    """
    rounds = max(job.repetition or 1 for job in jobs)
    if rounds < MIN_PROCESSES:
        raise ConfigError(
            f"repeat={rounds} is too few for a verdict on a small change; type {MIN_PROCESSES} or more"
        )
    devices = sorted({job.experiment.device for job in jobs})
    if len(devices) > 1:
        raise ConfigError(f"each device has a baseline of its own; choose one of {', '.join(devices)}")


def check_kernels(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that every process measured the same sources of each implementation.

    Raises:
        ConfigError: A source file changed between two processes, so their medians cannot be merged.
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


def find_weaknesses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """List why these rows may be a poor baseline, a sentence each."""
    timed = [row for row in rows if row["status"] == "ok"]
    sentences = []
    if found := [row for row in timed if merge_disturbances([row])]:
        why = ", ".join(f"{column} {value}" for column, value in merge_disturbances(found).items())
        sentences.append(
            f"the GPU was disturbed in {len(found)} of the baseline's {len(timed)} measurements ({why}), "
            "so a gate may find its points faster or ambiguous; kvexp baseline measures again"
        )
    points = merge_repetitions(rows)
    if few := [point for point in points if 0 < point[PROCESSES] < MIN_PROCESSES]:
        sentences.append(
            f"{len(few)} of the baseline's {len(points)} points were timed by fewer than "
            f"{MIN_PROCESSES} processes"
        )
    return sentences


def describe_machine(device: str) -> dict[str, Any]:
    """Return the columns about the machine that a row of this device would have, and the device itself.

    Raises:
        ConfigError: The machine has no such device, or the process that looks for it died.
    """
    with Worker(device) as worker:
        try:
            worker.wait()
        except KvexpError as error:
            raise ConfigError(str(error)) from error
        return {**worker.environment, "device": worker.device}
