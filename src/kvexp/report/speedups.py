"""Two values of one axis against each other, everything else alike: the cells of a heat map of speed-up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import geometric_mean

from kvexp.measurement import Row
from kvexp.report.curves import Line, named, varied
from kvexp.results.load import TOGETHER
from kvexp.results.merge import LATENCIES, PROCESSES
from kvexp.results.verdict import ENOUGH_PROCESSES, Verdict, judge, judge_processes

_MOST_PAIRS = 28  # every pair of eight values; of more, each against the first


@dataclass(frozen=True)
class Axis:
    """A column that was varied, and the lines that are alike in all others.

    Attributes:
        column: The column.
        groups: For each context in words, its line of each value; only those with two or more.
    """

    column: str
    groups: Mapping[str, Mapping[str, Line]]

    @property
    def values(self) -> list[str]:
        """Every value that some group holds, in the order of the lines."""
        return list(dict.fromkeys(value for group in self.groups.values() for value in group))


@dataclass(frozen=True)
class Contrast:
    """One value against another, in every context that has both.

    Attributes:
        axis: The column.
        baseline: The value that is compared with.
        candidate: The value that a speed-up above 1 speaks for.
        num_tokens: The columns of the heat map.
        cells: For each context in words, the verdict at each num_tokens that has both.
    """

    axis: str
    baseline: str
    candidate: str
    num_tokens: tuple[int, ...]
    cells: Mapping[str, Mapping[int, Verdict]]


def axes(lines: Sequence[Line]) -> list[Axis]:
    """Each column that was varied with everything else alike."""
    told_apart = varied(lines)
    found: list[Axis] = []
    taken: set[str] = set()
    for column in told_apart:
        own = {column, *TOGETHER.get(column, ())}
        if column in taken:
            continue
        groups = _groups(lines, [name for name in told_apart if name in own], own, told_apart)
        if groups:
            found.append(Axis(column, groups))
            taken |= own
    return found


def contrasts(axis: Axis) -> list[Contrast]:
    """Every pair of the axis's values, the value that comes later as the baseline."""
    pairs = list(combinations(axis.values, 2))
    if len(pairs) > _MOST_PAIRS:
        pairs = [pair for pair in pairs if axis.values[0] in pair]
    return [found for candidate, baseline in pairs if (found := _contrast(axis, baseline, candidate)).cells]


def is_enough(row: Row) -> bool:
    """Whether a point can be called faster than another: on a CPU not that of one process alone."""
    return not str(row.get("device", "")).startswith("cpu") or row.get(PROCESSES, 1) > 1


def told(baseline: Row, candidate: Row) -> Verdict:
    """The verdict on two points, on all of their processes; `ambiguous` where one of them is not enough."""
    before, now = map(_processes, (baseline, candidate))
    enough = min(len(before), len(now)) >= ENOUGH_PROCESSES
    verdict = judge_processes(before, now) if enough else judge(baseline, candidate)
    return verdict if is_enough(baseline) and is_enough(candidate) else replace(verdict, word="ambiguous")


def latency_us(row: Row) -> float:
    """By which a point is ranked: as `told` compares it, the geometric mean of several processes."""
    found = row.get(LATENCIES, ())
    return geometric_mean(found) if len(found) >= ENOUGH_PROCESSES else float(row["latency_us"])


def _processes(row: Row) -> list[Row]:
    """The point as each of its processes found it, without the intervals, which are not known here."""
    return [{**row, "latency_us": latency_us} for latency_us in row.get(LATENCIES, ())]


def _groups(
    lines: Sequence[Line], naming: Sequence[str], own: set[str], told_apart: Sequence[str]
) -> dict[str, dict[str, Line]]:
    found: dict[tuple[object, ...], dict[str, Line]] = {}
    for line in lines:
        context = tuple(value for column, value in line.key.items() if column not in own)
        found.setdefault(context, {})[named(line, naming) or "as it comes"] = line
    rest = [column for column in told_apart if column not in own]
    groups: dict[str, dict[str, Line]] = {}
    for group in found.values():
        if len(group) > 1:
            groups[named(next(iter(group.values())), rest)] = group
    return groups


def _contrast(axis: Axis, baseline: str, candidate: str) -> Contrast:
    cells: dict[str, dict[int, Verdict]] = {}
    for context, group in axis.groups.items():
        if baseline in group and candidate in group:
            verdicts = _verdicts(group[baseline], group[candidate])
            if verdicts:
                cells[context] = verdicts
    tokens = sorted({num_tokens for verdicts in cells.values() for num_tokens in verdicts})
    return Contrast(axis.column, baseline, candidate, tuple(tokens), cells)


def _verdicts(baseline: Line, candidate: Line) -> dict[int, Verdict]:
    found = {}
    for row in baseline.points:
        other = candidate.at(row["num_tokens"])
        if other is not None:
            found[row["num_tokens"]] = told(row, other)
    return found
