"""Compare two values of one axis, everything else equal: the cells of a heat map of speed-ups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from kvexp.measurement import Row
from kvexp.report.curves import Line, describe, find_varied
from kvexp.results import verdict
from kvexp.results.labels import TOGETHER
from kvexp.results.merge import GPUS, INTERVALS, LATENCIES
from kvexp.results.verdict import Verdict

_MOST_PAIRS = 28  # every pair of eight values; of more, each against the first


@dataclass(frozen=True)
class Axis:
    """A column that was varied, and the lines that are equal in all others.

    Attributes:
        column: The column.
        groups: For each context in words, its line of each value; only contexts of two or more lines.
    """

    column: str
    groups: Mapping[str, Mapping[str, Line]]

    @property
    def values(self) -> list[str]:
        """Every value of some group, in the order of the lines."""
        return list(dict.fromkeys(value for group in self.groups.values() for value in group))


@dataclass(frozen=True)
class Contrast:
    """One value against another, in every context that has both.

    Attributes:
        axis: The column.
        baseline: The value that is compared with.
        candidate: The value that is faster where the speed-up is above 1.
        num_tokens: The columns of the heat map.
        cells: For each context in words, the verdict at each num_tokens that has both.
    """

    axis: str
    baseline: str
    candidate: str
    num_tokens: tuple[int, ...]
    cells: Mapping[str, Mapping[int, Verdict]]


def find_axes(lines: Sequence[Line]) -> list[Axis]:
    """Find each column that was varied with everything else equal."""
    columns = find_varied(lines)
    found: list[Axis] = []
    taken: set[str] = set()
    for column in columns:
        own = {column, *TOGETHER.get(column, ())}
        if column in taken:
            continue
        groups = _group_by_context(lines, [name for name in columns if name in own], own, columns)
        if groups:
            found.append(Axis(column, groups))
            taken |= own
    return found


def make_contrasts(axis: Axis) -> list[Contrast]:
    """Contrast every pair of the axis's values; the later value is the baseline."""
    pairs = list(combinations(axis.values, 2))
    if len(pairs) > _MOST_PAIRS:
        pairs = [pair for pair in pairs if axis.values[0] in pair]
    made = (_make_contrast(axis, baseline, candidate) for candidate, baseline in pairs)
    return [contrast for contrast in made if contrast.cells]


def is_comparable(row: Row) -> bool:
    """Return whether a point can be called faster than another; on a CPU it needs several processes."""
    return verdict.is_comparable(split_processes(row))


def judge_points(baseline: Row, candidate: Row) -> Verdict:
    """Judge two points by all of their processes."""
    before, now = map(split_processes, (baseline, candidate))
    gpus = verdict.between_gpus(before, now)
    return verdict.judge_processes(before, now, gpus=gpus, in_one_sweep=True)


def get_latency_us(row: Row) -> float:
    """Return the latency that a point is ranked by: of several processes their geometric mean."""
    return verdict.get_latency_us(split_processes(row))


def split_processes(row: Row) -> list[Row]:
    """Return a row for each process of the point, in the order of the rounds; itself if it is not merged."""
    columns = (LATENCIES, INTERVALS, GPUS)
    return [
        {**row, "latency_us": latency_us, "latency_us_low": low, "latency_us_high": high, "device_uuid": gpu}
        for latency_us, (low, high), gpu in zip(*map(row.get, columns, [()] * 3), strict=True)
    ] or [row]


def _group_by_context(
    lines: Sequence[Line], naming: Sequence[str], own: set[str], varied: Sequence[str]
) -> dict[str, dict[str, Line]]:
    found: dict[tuple[object, ...], dict[str, Line]] = {}
    for line in lines:
        context = tuple(value for column, value in line.key.items() if column not in own)
        found.setdefault(context, {})[describe(line, naming) or "as it comes"] = line
    rest = [column for column in varied if column not in own]
    groups: dict[str, dict[str, Line]] = {}
    for group in found.values():
        if len(group) > 1:
            groups[describe(next(iter(group.values())), rest)] = group
    return groups


def _make_contrast(axis: Axis, baseline: str, candidate: str) -> Contrast:
    cells: dict[str, dict[int, Verdict]] = {}
    for context, group in axis.groups.items():
        if baseline in group and candidate in group:
            verdicts = _judge_lines(group[baseline], group[candidate])
            if verdicts:
                cells[context] = verdicts
    tokens = sorted({num_tokens for verdicts in cells.values() for num_tokens in verdicts})
    return Contrast(axis.column, baseline, candidate, tuple(tokens), cells)


def _judge_lines(baseline: Line, candidate: Line) -> dict[int, Verdict]:
    found = {}
    for row in baseline.points:
        other = candidate.at(row["num_tokens"])
        if other is not None:
            found[row["num_tokens"]] = judge_points(row, other)
    return found
