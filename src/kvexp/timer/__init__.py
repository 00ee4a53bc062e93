"""Time the calls of a point: one module for each clock, and the sampling that all of them share.

Imports op, gpu, statistics, and the experiment and errors below them.
"""

import secrets
import statistics as stats
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

from kvexp.errors import Unsupported
from kvexp.gpu.cupti import check as check_cupti
from kvexp.timer.replay import Replay
from kvexp.timer.stopping_criterion import StoppingCriterion, collect_samples

GPU_CLOCKS = ("cuda_event", "cupti")
"""Timers that tell GPU time alone, in either mode."""

Audit = Callable[[int], None]
"""Check what a sample wrote, given the index of its run; raise IncorrectResult where it is wrong."""


@dataclass(frozen=True)
class Timing:
    """Samples of one call's latency.

    Attributes:
        samples_us: Microseconds, of each sample.
        host_us: The host's median time for an eager call.
        last_run: Index of the run that was sampled last.
    """

    samples_us: tuple[float, ...]
    host_us: float | None = None
    last_run: int = 0


def check_timer(timer: str, device: str) -> None:
    """Check that the device has the clock.

    Raises:
        Unsupported: A GPU's clock or profilers were asked for on a CPU, or CUPTI where it is missing.
    """
    if timer in (*GPU_CLOCKS, "profile") and not device.startswith("cuda"):
        raise Unsupported(f"timer={timer} needs a GPU; on device={device} use timer=wall_clock")
    if timer == "cupti":
        check_cupti()


def time_replay(replay: Replay, criterion: StoppingCriterion, audit: Audit | None = None) -> Timing:
    """Take samples of one call's latency until the criterion is met.

    Args:
        replay: The calls.
        criterion: When to stop.
        audit: Called after one of the first `min_samples` that count, and after the one behind it: what runs
            that do nothing leave cannot be right for both. That sample is drawn anew each time, so that no
            call can know which it is. Where the audit could affect the samples behind it, two are discarded.

    Raises:
        KvexpError: A sample cannot be taken, see the clock; or the audit has found wrong bytes.
    """
    before = len(replay.host_us)
    certain = max(1, min(criterion.min_samples, criterion.max_samples))
    first = criterion.warmup + secrets.randbelow(certain)
    audited = range(first, first + 2)
    # The first run has just been checked, and its rows are in the slots.
    turns = cycle([*range(1, len(replay.runs)), 0])
    taken = last_run = 0

    def take() -> float:
        nonlocal taken, last_run
        taken, last_run = taken + 1, next(turns)
        return replay.sample(last_run)

    def sample() -> float:
        latency_us = take()
        if audit and taken - 1 in audited:
            audit(last_run)
            if not replay.flushes_l2:
                take()
                audit(last_run)
                take()
        return latency_us

    samples = collect_samples(sample, criterion)
    host_us = list(replay.host_us[before:])
    if audit and not replay.flushes_l2:
        del host_us[first + 1 : first + 3]
    host_us = host_us[criterion.warmup :]
    return Timing(samples, stats.median(host_us) if host_us else None, last_run)
