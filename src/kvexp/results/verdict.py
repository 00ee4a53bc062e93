"""Judge whether two latencies differ: the one rule of the report, the comparison and the gate.

Two measurements of the same code differ by two kinds of noise. Within a process the samples scatter, as the
interval of the median says. Between processes the median itself moves (other addresses, other clocks), which
no single process can see. So a candidate is called faster or slower only where the intervals are further
apart than two processes of the same code were seen to differ. For two GPUs of one kind their difference is
added.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean, mean, variance
from typing import Literal

from kvexp.measurement import Row
from kvexp.results.labels import group_rows

Word = Literal["faster", "slower", "same", "ambiguous"]

MANY_TOKENS = 512
GPU_MANY, GPU_FEW, CPU = 0.02, 0.05, 0.20
"""By which part the medians of two processes differ on a GPU, from MANY_TOKENS on and below, and on a CPU.

The GPU's are rounded up from two sweeps of `experiment=seed_flash` on an H200, whose medians differ by at
most 1.4 % from 512 tokens on and 3.9 % below. The CPU's is from five runs of `impl=torch layout=NHD
workload=quickstart` on a shared machine of 2 threads: at 8 tokens 88 to 106 µs.
"""

OTHER_GPU_MANY, OTHER_GPU_FEW = 0.01, 0.03
"""By which part two GPUs of one kind differ on the same code, from MANY_TOKENS on and below.

From seven pairs of five H200s: of each pair 95 % of the points differ by at most 1.0 % from 512 tokens on and
by 2.7 % below.
"""

ENOUGH_PROCESSES = 3
"""Processes of each side from which on their own scatter is used."""
PRIOR_FREEDOM = 4
"""Degrees of freedom of the prior, the noise that was measured before: as of two sides of three processes."""
CONFIDENCE = 0.995
"""Of the interval of a ratio. Of simulated equal code 0.3 % of points are called faster or slower."""
_GPU = ("device_name", "device_uuid")
_TWO_OF_A_KIND = 1.96 * math.sqrt(2)
"""The difference that 95 % of pairs stay below, in standard deviations of one."""


@dataclass(frozen=True)
class Verdict:
    """A candidate's latency against a baseline's.

    Attributes:
        word: `faster` or `slower` where the difference exceeds both kinds of noise and the GPUs' difference;
            `same` where it is certainly smaller than the noise between processes; else `ambiguous`.
        ratio: The candidate's latency over the baseline's, as `latencies` gives them.
        low: The least ratio that the intervals of the two allow.
        high: The greatest.
        noise: By which part 1 must be outside of these for a difference; 0 where they allow for the noise.
    """

    word: Word
    ratio: float
    low: float
    high: float
    noise: float = 0.0

    @property
    def speedup(self) -> float:
        """How many times as fast as the baseline the candidate is."""
        return 1 / self.ratio

    @property
    def least_seen(self) -> float:
        """The least difference, as a part, that would be called faster or slower with intervals as wide."""
        return (1 + self.noise) * max(self.ratio / self.low, self.high / self.ratio) - 1

    @property
    def strength(self) -> float:
        """How strongly a map colours it, from 0.2 for the least to 1 for half as fast again or more."""
        return 0.2 + 0.8 * min(1.0, abs(math.log(self.ratio)) / math.log(1.5))


def between_processes(row: Row) -> float:
    """Return by which part the medians of two processes that measure this point differ."""
    if str(row.get("device", "")).startswith("cpu"):
        return CPU
    return GPU_MANY if row["num_tokens"] >= MANY_TOKENS else GPU_FEW


def between_gpus(baseline: Sequence[Row], candidate: Sequence[Row]) -> float:
    """Return by which part equal code differs on the two sides' GPUs.

    0 where they share a GPU, since what ran on it is compared, and for two kinds.
    """
    sides = (baseline, candidate)
    names, uuids = ([{row.get(column) for row in side} for side in sides] for column in _GPU)
    if names[0] != names[1] or None in uuids[0] | uuids[1] or uuids[0] & uuids[1]:
        return 0.0
    return OTHER_GPU_MANY if baseline[0]["num_tokens"] >= MANY_TOKENS else OTHER_GPU_FEW


def interval(row: Row) -> tuple[float, float]:
    """Return the 95 % interval of the median in µs; of a row without one its 20th and 80th percentiles."""
    for low, high in (("latency_us_low", "latency_us_high"), ("latency_us_p20", "latency_us_p80")):
        if row.get(low) is not None and row.get(high) is not None:
            return row[low], row[high]
    return row["latency_us"], row["latency_us"]


def judge(baseline: Row, candidate: Row, tolerance: float | None = None, gpus: float = 0.0) -> Verdict:
    """Judge two `ok` rows, each from one process.

    Args:
        baseline: What the candidate is compared with.
        candidate: The other one.
        tolerance: The part by which two processes differ; by default `between_processes`.
        gpus: The part by which their GPUs differ; see `between_gpus`.
    """
    noise = between_processes(baseline) if tolerance is None else tolerance
    (base_low, base_high), (low, high) = interval(baseline), interval(candidate)
    ratio, least, most = candidate["latency_us"] / baseline["latency_us"], low / base_high, high / base_low
    return _widen(Verdict(choose_word(least, most, noise), ratio, least, most, noise), gpus)


def judge_processes(
    baseline: Sequence[Row],
    candidate: Sequence[Row],
    tolerance: float | None = None,
    gpus: float = 0.0,
    enough: int = ENOUGH_PROCESSES,
) -> Verdict:
    """Judge the `ok` rows of one point, each from a process of its own.

    From `enough` processes a side on, their scatter says how far processes differ. A few may scatter little
    or much by chance, so the noise that was measured before counts as PRIOR_FREEDOM further degrees of
    freedom: a moderated t-test of the logarithms (Smyth 2004, doi:10.2202/1544-6115.1027). With fewer `judge`
    compares each side's process of median latency. The difference of two GPUs is added, since it does not
    shrink with more processes.

    `enough` is at least two; see `judge` for the other arguments.
    """
    blocks = _pair_by_gpu(baseline, candidate)
    if _count_processes(blocks) < enough:
        before, now = max(blocks, key=lambda block: min(map(len, block)))
        return judge(_select_median(before), _select_median(now), tolerance, gpus)
    noise = between_processes(baseline[0]) if tolerance is None else tolerance
    logs = [[[math.log(row["latency_us"]) for row in side] for side in block] for block in blocks]
    weights = [_weigh(block) for block in blocks]
    differences = [mean(now) - mean(before) for before, now in logs]
    middle = sum(map(operator.mul, weights, differences)) / sum(weights)
    sides = [side for block in logs for side in block]
    squares = sum(variance(side) * (len(side) - 1) for side in sides if len(side) > 1)
    squares += sum(weight * (one - middle) ** 2 for weight, one in zip(weights, differences, strict=True))
    freedom = sum(map(len, sides)) - len(blocks) - 1
    spread = (squares + PRIOR_FREEDOM * (noise / _TWO_OF_A_KIND) ** 2) / (freedom + PRIOR_FREEDOM)
    reach = _t_quantile(freedom + PRIOR_FREEDOM) * math.sqrt(spread / sum(weights))
    low, high = math.exp(middle - reach), math.exp(middle + reach)
    inside = low * (1 + noise) >= 1 and high <= 1 + noise
    found: Word = "same" if inside else "ambiguous"
    if not low <= 1 <= high:
        found = "slower" if low > 1 else "faster"
    return _widen(Verdict(found, math.exp(middle), low, high), gpus)


def latencies(baseline: Sequence[Row], candidate: Sequence[Row]) -> tuple[float | None, float | None]:
    """Return the latency in µs of each side as `judge_processes` compares them; None for a side without rows.

    From ENOUGH_PROCESSES a side on it is their geometric mean, else that of the median process. Of sides that
    share a GPU what ran on shared ones counts, GPUs weighted as there.
    """
    blocks = _pair_by_gpu(baseline, candidate)
    if _count_processes(blocks) >= ENOUGH_PROCESSES:
        weights = [_weigh(block) for block in blocks]
        of_gpus = [[geometric_mean(row["latency_us"] for row in side) for side in block] for block in blocks]
        first, second = (_average(side, weights) for side in zip(*of_gpus, strict=True))
        return first, second
    sides = max(blocks, key=lambda block: min(map(len, block)))
    before, now = (float(_select_median(side)["latency_us"]) if side else None for side in sides)
    return before, now


Block = tuple[Sequence[Row], Sequence[Row]]
"""The rows of the baseline and of the candidate that ran on one GPU."""


def _pair_by_gpu(baseline: Sequence[Row], candidate: Sequence[Row]) -> list[Block]:
    """Pair the rows that ran on the same GPU; where the sides share none, all of them are one pair."""
    sides = [group_rows(side, _GPU) for side in (baseline, candidate)]
    shared = [(rows, sides[1][gpu]) for gpu, rows in sides[0].items() if gpu in sides[1]]
    return [*shared] or [(baseline, candidate)]


def _count_processes(blocks: Sequence[Block]) -> int:
    """Count the processes of the side that has fewer."""
    return min(sum(map(len, side)) for side in zip(*blocks, strict=True))


def _weigh(block: Block) -> float:
    """Return the weight of a block's difference: the inverse of its variance, in that of one process."""
    before, now = map(len, block)
    return before * now / (before + now)


def _average(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted geometric mean."""
    logs = map(math.log, values)
    return math.exp(sum(map(operator.mul, weights, logs)) / sum(weights))


def _select_median(rows: Sequence[Row]) -> Row:
    return sorted(rows, key=lambda row: row["latency_us"])[(len(rows) - 1) // 2]


def _widen(verdict: Verdict, gpus: float) -> Verdict:
    """Widen the interval by the GPUs' difference; a difference that is then within the noise is ambiguous."""
    low, high, noise = verdict.low / (1 + gpus), verdict.high * (1 + gpus), verdict.noise
    is_within = verdict.word in ("faster", "slower") and high * (1 + noise) >= 1 and low <= 1 + noise
    return replace(verdict, word="ambiguous" if is_within else verdict.word, low=low, high=high)


def _t_quantile(freedom: float) -> float:
    from scipy.stats import t  # here, since it takes a second to import

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


def choose_word(low: float, high: float, noise: float) -> Word:
    """Choose the word for a ratio between `low` and `high`, where a difference up to `noise` is none."""
    if high * (1 + noise) < 1:
        return "faster"
    if low > 1 + noise:
        return "slower"
    return "same" if low * (1 + noise) >= 1 and high <= 1 + noise else "ambiguous"
