"""Whether two latencies differ: the one rule by which a report, a comparison and a gate say faster or slower.

Two kinds of noise stand between two measurements of the same code. Within a process the samples scatter: the
interval of the median says how far. Between processes (other addresses, other clocks) the median itself
moves, and no single process can see that. So a difference is told only where the intervals stay apart by more
than two processes were seen to differ. Where the two were measured on different GPUs of one kind, what such
differ by comes on top.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, mean, variance
from typing import Any, Literal

Row = Mapping[str, Any]
Word = Literal["faster", "slower", "same", "ambiguous"]

MANY_TOKENS = 512
GPU_MANY, GPU_FEW, CPU = 0.02, 0.05, 0.20
"""How far the medians of two processes differ on a GPU, from MANY_TOKENS on and below, and on a CPU.

The GPU's are rounded up from two sweeps of `experiment=seed_flash` on an H200, whose medians differ by at
most 1.4 % from 512 tokens on and 3.9 % below. The CPU's is from five runs of `impl=torch layout=NHD
workload=quickstart` on a shared machine of 2 threads: at 8 tokens 88 to 106 µs.
"""

OTHER_GPU_MANY, OTHER_GPU_FEW = 0.01, 0.03
"""How far two GPUs of one kind differ on the same code, from MANY_TOKENS on and below.

From seven pairs of five H200s: of each pair 95 % of the points differ by at most 1.0 % from 512 tokens on and
by 2.7 % below.
"""

ENOUGH = 3
"""Processes a side from which on their own scatter is used."""
PRIOR = 4
"""Degrees of freedom that what was measured before counts for: as many as of two sides of three processes."""
CONFIDENCE = 0.995
"""Of the interval of a ratio: on simulated equal ones 0.3 % are then called faster or slower, not 0.5 %."""
_GPU = ("device_name", "device_uuid")
_TWO_OF_A_KIND = 1.96 * math.sqrt(2)
"""The difference that 95 % of pairs stay below, in standard deviations of one."""


@dataclass(frozen=True)
class Verdict:
    """How a candidate's latency stands to a baseline's.

    Attributes:
        word: `faster` or `slower` where the difference exceeds both kinds of noise, and what the GPUs differ
            by; `same` where it is certain to be smaller than the second kind; else `ambiguous`.
        ratio: The candidate's latency over the baseline's, as `latencies` gives them.
        low: The least ratio that the intervals of the two allow.
        high: The greatest.
    """

    word: Word
    ratio: float
    low: float
    high: float

    @property
    def speedup(self) -> float:
        """How many times as fast as the baseline the candidate is."""
        return 1 / self.ratio

    @property
    def strength(self) -> float:
        """How strongly a map colours it, from 0.2 for the least to 1 for half as fast again or more."""
        return 0.2 + 0.8 * min(1.0, abs(math.log(self.ratio)) / math.log(1.5))


def between_processes(row: Row) -> float:
    """By which part two processes differ that measure this same point."""
    if str(row.get("device", "")).startswith("cpu"):
        return CPU
    return GPU_MANY if row["num_tokens"] >= MANY_TOKENS else GPU_FEW


def between_gpus(baseline: Sequence[Row], candidate: Sequence[Row]) -> float:
    """By which part equal code differs on the sides' GPUs; 0 where they are the same, or of two kinds."""
    sides = (baseline, candidate)
    names, uuids = ([{row.get(column) for row in side} for side in sides] for column in _GPU)
    if names[0] != names[1] or None in uuids[0] | uuids[1] or uuids[0] == uuids[1]:
        return 0.0
    return OTHER_GPU_MANY if baseline[0]["num_tokens"] >= MANY_TOKENS else OTHER_GPU_FEW


def interval(row: Row) -> tuple[float, float]:
    """The 95 % interval of the median in µs; of a row without one its 20th and 80th percentiles."""
    for low, high in (("latency_us_low", "latency_us_high"), ("latency_us_p20", "latency_us_p80")):
        if row.get(low) is not None and row.get(high) is not None:
            return row[low], row[high]
    return row["latency_us"], row["latency_us"]


def judge(baseline: Row, candidate: Row, tolerance: float | None = None, gpus: float = 0.0) -> Verdict:
    """The verdict on two `ok` rows, each from one process.

    Args:
        baseline: What the candidate is compared with.
        candidate: The other one.
        tolerance: The part by which two processes differ; by default what was measured.
        gpus: The part by which their GPUs differ; see `between_gpus`.
    """
    noise = between_processes(baseline) if tolerance is None else tolerance
    (base_low, base_high), (low, high) = interval(baseline), interval(candidate)
    ratio, least, most = candidate["latency_us"] / baseline["latency_us"], low / base_high, high / base_low
    return _on_other_gpus(Verdict(word(least, most, noise), ratio, least, most), noise, gpus)


def judge_processes(
    baseline: Sequence[Row], candidate: Sequence[Row], tolerance: float | None = None, gpus: float = 0.0
) -> Verdict:
    """The verdict on `ok` rows of one point, of which each comes from a process of its own.

    From ENOUGH processes a side on, their scatter says how far processes differ. Since a few scatter little
    or much by chance, what was measured before counts as PRIOR further degrees of freedom: a moderated
    t-test of the logarithms (Smyth 2004, doi:10.2202/1544-6115.1027). With fewer it is the rule of `judge`,
    on each side's middle process. What their GPUs differ by no number of processes tells: it comes on top.

    Args:
        baseline: What the candidate is compared with.
        candidate: The others.
        tolerance: See `judge`.
        gpus: See `judge`.
    """
    if min(len(baseline), len(candidate)) < ENOUGH:
        return judge(_middle(baseline), _middle(candidate), tolerance, gpus)
    noise = between_processes(baseline[0]) if tolerance is None else tolerance
    before, now = ([math.log(row["latency_us"]) for row in side] for side in (baseline, candidate))
    freedom = len(before) + len(now) - 2
    squares = variance(before) * (len(before) - 1) + variance(now) * (len(now) - 1)
    spread = (squares + PRIOR * (noise / _TWO_OF_A_KIND) ** 2) / (freedom + PRIOR)
    reach = _quantile(freedom + PRIOR) * math.sqrt(spread * (1 / len(before) + 1 / len(now)))
    middle = mean(now) - mean(before)
    low, high = math.exp(middle - reach), math.exp(middle + reach)
    inside = low * (1 + noise) >= 1 and high <= 1 + noise
    found: Word = "same" if inside else "ambiguous"
    if not low <= 1 <= high:
        found = "slower" if low > 1 else "faster"
    return _on_other_gpus(Verdict(found, math.exp(middle), low, high), 0.0, gpus)


def latencies(baseline: Sequence[Row], candidate: Sequence[Row]) -> tuple[float | None, float | None]:
    """The latency in µs of each side, as `judge_processes` compares them; None of a side without rows.

    From ENOUGH processes a side on it is their geometric mean, else that of the middle one.
    """
    enough = min(len(baseline), len(candidate)) >= ENOUGH

    def of(side: Sequence[Row]) -> float | None:
        if enough:
            return geometric_mean(row["latency_us"] for row in side)
        return float(_middle(side)["latency_us"]) if side else None

    return of(baseline), of(candidate)


def _middle(rows: Sequence[Row]) -> Row:
    return sorted(rows, key=lambda row: row["latency_us"])[(len(rows) - 1) // 2]


def _on_other_gpus(verdict: Verdict, noise: float, gpus: float) -> Verdict:
    """The same with the wider interval; a difference that is within `noise` of it then is ambiguous."""
    low, high = verdict.low / (1 + gpus), verdict.high * (1 + gpus)
    doubted = verdict.word in ("faster", "slower") and high * (1 + noise) >= 1 and low <= 1 + noise
    return Verdict("ambiguous" if doubted else verdict.word, verdict.ratio, low, high)


def _quantile(freedom: float) -> float:
    from scipy.stats import t  # here, since it takes a second to import

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


def word(low: float, high: float, noise: float) -> Word:
    """What a ratio between `low` and `high` says where `noise` is not to be told from nothing."""
    if high * (1 + noise) < 1:
        return "faster"
    if low > 1 + noise:
        return "slower"
    return "same" if low * (1 + noise) >= 1 and high <= 1 + noise else "ambiguous"
