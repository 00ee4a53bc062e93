"""List where a sweep's curves are measured: this host as a whole, or each of several GPUs or workers."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from kvexp.errors import ConfigError, Unsupported
from kvexp.experiment import Experiment
from kvexp.gpu import nvml
from kvexp.host.process import LineChild
from kvexp.host.terminal import say
from kvexp.sweep.settings import Isolation

MOST_WORKERS = 1024

DISTURB = "kvexp: {} processes measure on this CPU at the same time and disturb each other's timings"

_DEVICES, _WORKERS = "hydra.launcher.devices", "hydra.launcher.workers"


@dataclass(frozen=True)
class Place:
    """A place that measures one curve at a time.

    Attributes:
        name: What sentences call it.
        device: The device that its curves are measured on; empty leaves each curve its own.
        visible: The GPUs that its process sees, as CUDA_VISIBLE_DEVICES; empty for those that this one sees.
        start_child: Starts a measuring process elsewhere; where that cannot be, what it returns has ended.
            None for a process of this host.
    """

    name: str = "this host"
    device: str = ""
    visible: str = ""
    start_child: Callable[[], LineChild] | None = None


HERE = (Place(),)
"""The one place of a sweep that names none."""


def list_places(
    devices: object, workers: object, experiments: Sequence[Experiment], isolation: Isolation
) -> Sequence[Place]:
    """List the places of this host that were asked for.

    Args:
        devices: `all` GPUs, or a list of their numbers as nvidia-smi counts those that this process sees;
            None for the device that each curve names.
        workers: How many processes measure on the CPU at the same time.
        experiments: The curves.
        isolation: See `SweepSettings`.

    Raises:
        ConfigError: The two are something else, a GPU is not there, or a curve names another device.
    """
    asked = {experiment.device for experiment in experiments}
    workers = check_workers(workers)
    if isolation == "inline" and (devices is not None or workers > 1):
        raise ConfigError(
            f"isolation=inline measures in this process, and {_DEVICES} and {_WORKERS} start others; "
            "leave one of them out"
        )
    if devices is not None:
        if workers > 1:
            raise ConfigError(f"{_WORKERS} is for the CPU and {_DEVICES} for GPUs; type one of them")
        if asked != {"auto"}:
            raise ConfigError(
                f"device={min(asked - {'auto'})} and {_DEVICES} both say where to measure; type one of them"
            )
        return _list_gpus(devices)
    if workers == 1:
        return HERE
    if asked != {"cpu"}:
        raise ConfigError(
            f"{_WORKERS}={workers} needs device=cpu, not device={min(asked - {'cpu'})}; {_DEVICES} names GPUs"
        )
    say(DISTURB.format(workers))
    return [Place(f"worker {number}", "cpu") for number in range(workers)]


def check_workers(workers: object) -> int:
    """Return the number of workers.

    Raises:
        ConfigError: It is something else, or too large.
    """
    if type(workers) is not int or not 1 <= workers <= MOST_WORKERS:
        raise ConfigError(f"{_WORKERS} must be a number from 1 to {MOST_WORKERS}, not {workers!r}")
    return workers


def _list_gpus(devices: object) -> Sequence[Place]:
    is_list = isinstance(devices, list) and all(type(number) is int for number in devices)
    if devices != "all" and not (is_list and devices):
        raise ConfigError(f"{_DEVICES} must be all or a list as '[0,1]', not {devices!r}")
    try:
        uuids = nvml.list_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    except (ImportError, Unsupported) as error:
        raise ConfigError(f"{_DEVICES}={devices} needs GPUs: {error}") from error
    if not uuids:
        raise ConfigError(f"{_DEVICES}={devices} names no GPU: CUDA_VISIBLE_DEVICES hides all of them")
    numbers = cast(list[int], list(range(len(uuids))) if devices == "all" else devices)
    for number in numbers:
        if not 0 <= number < len(uuids):
            raise ConfigError(f"{_DEVICES} names the GPU {number}, and there are {len(uuids)}, from 0 on")
        if numbers.count(number) > 1:
            raise ConfigError(f"{_DEVICES} names the GPU {number} twice")
    # The process sees the others, too: a transfer to a peer needs one.
    orders = [",".join([*uuids[number:], *uuids[:number]]) for number in numbers]
    return [Place(f"GPU {number}", "cuda:0", order) for number, order in zip(numbers, orders, strict=True)]
