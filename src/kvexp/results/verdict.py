"""Judge whether two latencies differ: the one rule of the report, the comparison and the gate.

Measurements of the same code differ by noise of three kinds. Within a process the samples scatter, as the
interval of the median says. Between processes the median itself moves (other addresses, other clocks), which
no single process can see. And a whole sweep may be shifted against another one (another day, a warmer GPU),
which its own processes cannot see. A candidate is called faster or slower only where the difference exceeds
all noise that its sides do not share. For two GPUs of one kind their difference counts as well.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from kvexp.measurement import Row
from kvexp.results.labels import DEVICE, group_rows
from kvexp.results.load import SWEEP

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
by 2.7 % below. Each was measured by a sweep of its own, so what shifts a sweep is in these figures.
"""

SAME = 1.5
"""How many times what processes differ by must be ruled out for `same`."""
PRIOR_FREEDOM = 4
"""Degrees of freedom of the prior, the noise that was measured before: as of two sides of three processes."""
UNSEEN_FREEDOM = 8
"""Degrees of freedom of the noise where one process a side shows none: its tails may be heavy (t of 8)."""
CONFIDENCE = 0.995
"""Of the interval of a ratio. Of simulated equal code 0.3 % of points are called faster or slower."""
_GPU = (DEVICE, "device_uuid")
_LARGEST = 300.0
"""The logarithm of the largest ratio."""
_TWO_OF_A_KIND = 1.96 * math.sqrt(2)
"""The difference that 95 % of pairs stay below, in standard deviations of one."""


@dataclass(frozen=True)
class Verdict:
    """A candidate's latency against a baseline's.

    Attributes:
        word: `faster` or `slower` where the interval lies beside 1; `same` where it lies within SAME times
            what processes differ by; else `ambiguous`.
        ratio: The candidate's latency over the baseline's, as `latencies` gives them.
        low: The least ratio that the noise allows.
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
    def least_seen(self) -> float:
        """The least difference, as a part, that would be called faster or slower with an interval as wide."""
        return max(self.ratio / self.low, self.high / self.ratio) - 1

    @property
    def strength(self) -> float:
        """How strongly a map colours it, from 0.2 for the least to 1 for half as fast again or more."""
        return 0.2 + 0.8 * min(1.0, abs(math.log(self.ratio)) / math.log(1.5))


def between_processes(row: Row) -> float:
    """Return by which part the medians of two processes that measure this point differ."""
    if _is_on_cpu(row):
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


def is_comparable(rows: Sequence[Row]) -> bool:
    """Return whether the rows of a point can show that it is faster; on a CPU one process cannot."""
    return len(rows) > 1 or not _is_on_cpu(rows[0])


def judge_processes(
    baseline: Sequence[Row],
    candidate: Sequence[Row],
    tolerance: float | None = None,
    gpus: float = 0.0,
    *,
    in_one_sweep: bool = False,
) -> Verdict:
    """Judge the `ok` rows of one point, each from a process of its own.

    Their scatter says how far processes differ. A few may scatter little or much by chance, so the noise that
    was measured before counts as PRIOR_FREEDOM further degrees of freedom: a moderated t-test of the
    logarithms (Smyth 2004, doi:10.2202/1544-6115.1027). What a sweep is shifted by, its processes cannot
    show; it is taken to be what processes differ by. Of several sweeps a side each counts once, and their
    scatter is moderated by that in the same way. From one process a side nothing is known of the scatter:
    the noise that was measured before and the intervals of the medians count, and on a CPU the two are
    `ambiguous` unless a tolerance is given.

    Args:
        baseline: What the candidate is compared with.
        candidate: The other one.
        tolerance: The part by which 95 % of pairs of processes differ at most; see `between_processes`.
        gpus: The part by which their GPUs differ, see `between_gpus`. More processes do not make it less.
        in_one_sweep: Rows of both sides with an equal SWEEP are of the same sweep, and share its shift.
    """
    blocks, are_shared = _pair(baseline, candidate, in_one_sweep)
    part = max(map(between_processes, (baseline[0], candidate[0]))) if tolerance is None else tolerance
    measured_before = _Noise((part / _TWO_OF_A_KIND) ** 2, UNSEEN_FREEDOM)
    middle = _average([block.difference for block in blocks], blocks)
    processes = _estimate_processes(blocks, measured_before, middle if are_shared else None)
    within = processes.reach(1 / sum(block.weight for block in blocks)) + math.log1p(gpus)
    reaches, noise = [within], processes
    if not are_shared:
        noise = _estimate_sweeps(blocks, processes)
        reaches = [noise.reach(sum(1 / _count_sweeps(blocks, side) for side in (0, 1))), within * bool(gpus)]
    before, now = (
        [0.0, 0.0] if noise.is_seen else _average_intervals([*side])
        for side in zip(*(block.sides for block in blocks), strict=True)
    )
    low = _exp(middle - max(reaches) - now[0] - before[1])
    high = _exp(middle + max(reaches) + now[1] + before[0])
    is_certain = tolerance is not None or (is_comparable(baseline) and is_comparable(candidate))
    word: Word = choose_word(low, high, SAME * part) if is_certain else "ambiguous"
    return Verdict(word, _exp(middle), low, high)


def latencies(
    baseline: Sequence[Row], candidate: Sequence[Row], *, in_one_sweep: bool = False
) -> tuple[float | None, float | None]:
    """Return the latency in µs of each side as `judge_processes` compares them; None for a side without rows.

    It is a geometric mean of the processes, of several sweeps one of the sweeps'. Of sides that share a GPU
    what ran on shared ones counts, GPUs weighted as there.
    """
    if not (baseline and candidate):
        before, now = (get_latency_us(side) if side else None for side in (baseline, candidate))
        return before, now
    blocks, _ = _pair(baseline, candidate, in_one_sweep)
    first, second = (
        get_latency_us(side[0]) if len(side) == 1 else math.exp(_average([*map(_get_level, side)], blocks))
        for side in zip(*(block.sides for block in blocks), strict=True)
    )
    return first, second


def get_latency_us(rows: Sequence[Row]) -> float:
    """Return the latency of one side: of several processes their geometric mean, see `latencies`."""
    return float(rows[0]["latency_us"]) if len(rows) == 1 else math.exp(_get_level(rows))


def choose_word(low: float, high: float, margin: float = 0.0) -> Word:
    """Choose the word for a ratio between `low` and `high`; `same` rules out a difference of `margin`."""
    if high < 1:
        return "faster"
    if low > 1:
        return "slower"
    return "same" if low * (1 + margin) >= 1 and high <= 1 + margin else "ambiguous"


@dataclass(frozen=True)
class _Noise:
    """How far the logarithms of equal code scatter.

    Attributes:
        variance: That of one of them.
        freedom: The degrees of freedom by which it is known.
        is_seen: The rows themselves scatter; else it is what was measured before.
    """

    variance: float
    freedom: float
    is_seen: bool = False

    def moderate(self, squares: float, freedom: float) -> "_Noise":
        """Return the noise that these squares show, with this one as their prior."""
        if not freedom:
            return self
        known = freedom + PRIOR_FREEDOM
        return _Noise((squares + PRIOR_FREEDOM * self.variance) / known, known, is_seen=True)

    def reach(self, share: float) -> float:
        """Return half of the interval of a difference, whose variance is this share of the noise's."""
        return _quantile(self.freedom) * math.sqrt(share * self.variance)


@dataclass(frozen=True)
class _Block:
    """The rows of the baseline and of the candidate that ran on one GPU, or that one sweep measured there."""

    sides: tuple[Sequence[Row], Sequence[Row]]

    @property
    def weight(self) -> float:
        """The inverse of its difference's variance, in that of one process."""
        before, now = map(len, self.sides)
        return before * now / (before + now)

    @functools.cached_property
    def cells(self) -> list[list[list[float]]]:
        """The logarithms of each side's latencies, by sweep."""
        return [_group_logs(side) for side in self.sides]

    @functools.cached_property
    def difference(self) -> float:
        """The logarithm of the candidate's latency over the baseline's."""
        before, now = map(_average_sweeps, self.cells)
        return now - before


def _pair(baseline: Sequence[Row], candidate: Sequence[Row], in_one_sweep: bool) -> tuple[list[_Block], bool]:
    """Pair the rows of the same sweep on the same GPU, else of the same GPU, else all of them.

    Returns:
        The pairs, and whether the two sides of each are of one sweep.
    """
    for columns in ((*_GPU, SWEEP), (DEVICE, SWEEP), _GPU):
        if SWEEP in columns and not in_one_sweep:
            continue
        before, now = (group_rows(side, columns) for side in (baseline, candidate))
        shared = [_Block((rows, now[key])) for key, rows in before.items() if key in now]
        if shared:
            return shared, SWEEP in columns
    return [_Block((baseline, candidate))], False


def _estimate_processes(blocks: Sequence[_Block], prior: _Noise, middle: float | None) -> _Noise:
    """Estimate how far processes differ: within each sweep of each side, and of blocks from the middle."""
    cells = [cell for block in blocks for side in block.cells for cell in side]
    squares = sum(map(_sum_squares, cells))
    freedom = sum(len(cell) - 1 for cell in cells)
    if middle is not None:
        squares += sum(block.weight * (block.difference - middle) ** 2 for block in blocks)
        freedom += len(blocks) - 1
    return prior.moderate(squares, freedom)


def _estimate_sweeps(blocks: Sequence[_Block], processes: _Noise) -> _Noise:
    """Estimate how far sweeps differ: each is shifted as far as processes differ, or as several show."""
    cells = [side for block in blocks for side in block.cells]
    each = fmean(1 / len(cell) for side in cells for cell in side)
    prior = replace(processes, variance=processes.variance * (1 + each))
    levels = [[*map(fmean, side)] for side in cells]
    seen = sum(len(side) - 1 for side in levels)
    # A sweep on several GPUs is one sweep, however many of its shifts are seen.
    freedom = min(seen, sum(_count_sweeps(blocks, side) - 1 for side in (0, 1)))
    return prior.moderate(sum(map(_sum_squares, levels)) * freedom / max(seen, 1), freedom)


def _count_sweeps(blocks: Sequence[_Block], side: int) -> int:
    return len({row.get(SWEEP) for block in blocks for row in block.sides[side]})


def _group_logs(rows: Sequence[Row]) -> list[list[float]]:
    """Return the logarithms of the latencies, by sweep."""
    found: dict[object, list[float]] = {}
    for row in rows:
        found.setdefault(row.get(SWEEP), []).append(math.log(row["latency_us"]))
    return list(found.values())


def _average_sweeps(cells: Sequence[Sequence[float]]) -> float:
    """Return the mean logarithm; of several sweeps each counts once."""
    return fmean(map(fmean, cells))


def _get_level(rows: Sequence[Row]) -> float:
    return _average_sweeps(_group_logs(rows))


def _sum_squares(values: Sequence[float]) -> float:
    """Return the sum of the squared distances from the mean."""
    middle = fmean(values)
    return sum((value - middle) ** 2 for value in values)


def _average(values: Sequence[float], blocks: Sequence[_Block]) -> float:
    """Return the mean of a value of each block, weighted by the blocks."""
    weighed = sum(block.weight * value for block, value in zip(blocks, values, strict=True))
    return weighed / sum(block.weight for block in blocks)


def _average_intervals(sides: Sequence[Sequence[Row]]) -> list[float]:
    """Return by how much, in logarithms, the medians of these rows may be less and more."""
    rows = [row for side in sides for row in side]
    ends = [[math.log(end / row["latency_us"]) for end in interval(row)] for row in rows]
    return [fmean(-low for low, _ in ends), fmean(high for _, high in ends)]


def _exp(logarithm: float) -> float:
    """Return the exponential, within what a float can hold: rows may have any latency."""
    return math.exp(max(-_LARGEST, min(_LARGEST, logarithm)))


def _is_on_cpu(row: Row) -> bool:
    return str(row.get("device", "")).startswith("cpu")


@functools.cache
def _quantile(freedom: float) -> float:
    from scipy.special import stdtrit  # here, since only what compares needs it

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
