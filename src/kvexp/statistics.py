"""What samples say of a latency: its median, how sure that is, and how they are spread.

Needs no torch, and no numpy, whose percentiles take 0.07 s to import what they need.
"""

import functools
import math
import statistics
from collections.abc import Sequence

from kvexp.measurement import Statistics

CONFIDENCE = 0.95

Z99 = 2.5758
"""Normal quantile of the order statistics that give the median's standard error."""


def summarise(samples_us: Sequence[float]) -> Statistics:
    """Median and its interval, percentiles, extremes, mean and spread of the samples."""
    several = len(samples_us) > 1
    fifths = statistics.quantiles(samples_us, n=5, method="inclusive") if several else [*samples_us] * 4
    interval = median_interval(samples_us)
    return Statistics(
        latency_us=statistics.median(samples_us),
        latency_us_low=interval[0] if interval else None,
        latency_us_high=interval[1] if interval else None,
        latency_us_p20=fifths[0],
        latency_us_p80=fifths[-1],
        latency_us_min=min(samples_us),
        latency_us_mean=statistics.fmean(samples_us),
        latency_us_std=statistics.stdev(samples_us) if several else 0.0,
        samples=len(samples_us),
    )


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Two samples between which the median lies with a confidence of 95 % or more; None of fewer than 6.

    The order statistics that the binomial distribution names: whatever the samples' distribution, as long as
    they are independent, and without resampling, so that it is the same each time and costs no more than a
    sort. It tells of one process alone; another process may differ by more (docs/measuring.md).
    """
    rank = interval_rank(len(samples))
    if rank is None:
        return None
    ordered = sorted(samples)
    return float(ordered[rank - 1]), float(ordered[-rank])


@functools.cache
def interval_rank(count: int) -> int | None:
    """The largest rank k for which the k-th smallest and k-th largest of `count` samples hold the median.

    A median is below the k-th smallest sample when fewer than k of them are below it: of `count` coins, fewer
    than k heads. Both sides together may have no more than 5 %.
    """
    most = (1 - CONFIDENCE) / 2
    below, rank = 0, 0
    for heads in range(count // 2):
        below += math.comb(count, heads)
        if below / 2**count > most:
            break
        rank = heads + 1
    return rank or None


def median_standard_error(samples: Sequence[float]) -> float:
    """The standard error of the median from order statistics, whatever the distribution.

    The distance between the order statistics that bracket the median with 99 % confidence, over twice that
    normal quantile (McKean and Schrader, Communications in Statistics B 13, 1984).
    """
    ordered = sorted(samples)
    n = len(ordered)
    low = max(1, round((n + 1) / 2 - Z99 * math.sqrt(n / 4)))
    return (ordered[n - low] - ordered[low - 1]) / (2 * Z99)
