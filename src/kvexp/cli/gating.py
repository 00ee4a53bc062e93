"""What a gate and the baseline that it compares with have in common: how both are measured."""

from collections.abc import Sequence
from typing import Any

from kvexp.errors import ConfigError, KvexpError
from kvexp.sweep import Job
from kvexp.worker import Worker

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


def machine(device: str) -> dict[str, Any]:
    """The columns about the machine that a row measured on this device would have.

    Raises:
        ConfigError: The machine has no such device, or the process that looks for it died.
    """
    with Worker(device) as worker:
        try:
            worker.wait()
        except KvexpError as error:
            raise ConfigError(str(error)) from error
        return worker.environment
