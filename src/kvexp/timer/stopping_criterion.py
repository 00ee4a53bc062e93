"""Decide how many samples are enough."""

import statistics as stats
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvexp.statistics import median_standard_error


@dataclass(frozen=True)
class StoppingCriterion:
    """When to stop sampling.

    Attributes:
        warmup: Samples taken and thrown away first.
        min_samples: Samples taken at least.
        max_samples: Samples taken at most.
        relative_error: Stop when the standard error of the median is at most this part of the median.
        max_seconds: Stop when sampling has taken this long and there are `min_samples`.
    """

    warmup: int = 3
    min_samples: int = 20
    max_samples: int = 1000
    relative_error: float = 0.005
    max_seconds: float = 2.0


def collect_samples(
    sample: Callable[[], float], criterion: StoppingCriterion, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, ...]:
    """Take samples until the criterion is met, by a clock in seconds; after the warm-up keep every one."""
    for _ in range(criterion.warmup):
        sample()
    samples: list[float] = []
    begin = clock()
    while len(samples) < criterion.max_samples:
        samples.append(sample())
        if len(samples) < criterion.min_samples:
            continue
        if clock() - begin >= criterion.max_seconds:
            break
        # Sorting after each sample would cost more than sampling: check every fifth.
        if len(samples) % 5 == 0 and _is_precise(samples, criterion.relative_error):
            break
    return tuple(samples)


def _is_precise(samples: Sequence[float], relative_error: float) -> bool:
    return median_standard_error(samples) <= relative_error * stats.median(samples)
