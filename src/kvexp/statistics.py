"""Summarise samples of a latency: the median, its confidence interval, and the spread.

Uses neither torch nor numpy, whose percentiles import for 0.07 s.
"""

import functools
import math
import statistics
from collections.abc import Sequence

from kvexp.measurement import Statistics

CONFIDENCE = 0.95

Z99 = 2.5758
"""Normal quantile of 99 %, for the order statistics that give the median's standard error."""


def summarise(samples_us: Sequence[float]) -> Statistics:
    """Summarise samples in µs: the median and its interval, percentiles, extremes, mean and spread."""
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
    """Return the interval of the median at a confidence of 95 % or more; None for fewer than 6 samples.

    The ends are order statistics, chosen by the binomial distribution. That holds for independent samples of
    any distribution. Without resampling the interval is reproducible and costs no more than a sort. It holds
    within one process; another process may differ by more (docs/measuring.md).
    """
    rank = interval_rank(len(samples))
    if rank is None:
        return None
    ordered = sorted(samples)
    return float(ordered[rank - 1]), float(ordered[-rank])


@functools.cache
def interval_rank(count: int) -> int | None:
    """Return the largest rank k such that the k-th smallest and k-th largest samples enclose the median.

    The median is below the k-th smallest of `count` samples when fewer than k samples are below the median,
    as when `count` coins show fewer than k heads. Both sides together may have at most 5 %; None where not
    even rank 1 allows that.
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
    """Estimate the standard error of the median from order statistics, for any distribution.

    It is the distance between the order statistics that bracket the median with 99 % confidence, over twice
    that normal quantile (McKean and Schrader, Communications in Statistics B 13, 1984).
    """
    ordered = sorted(samples)
    n = len(ordered)
    low = max(1, round((n + 1) / 2 - Z99 * math.sqrt(n / 4)))
    return (ordered[n - low] - ordered[low - 1]) / (2 * Z99)
