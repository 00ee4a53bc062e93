"""Choose which lines share a figure: colours for one axis, dashes for a second, panels for the rest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kvexp.measurement import Row
from kvexp.report.curves import IDENTITY, WAYS, Line, describe, find_varied
from kvexp.results.labels import follows

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
"""Okabe and Ito's colours, which the colour-blind can distinguish; for their yellow two of Tol's."""
_DASHES = 4

Axis = tuple[str, ...]
"""Columns that vary as the first of them does."""


@dataclass(frozen=True)
class Series:
    """A line in a figure, with the numbers of its colour and its dashes; two lines differ in one of these."""

    name: str
    line: Line
    colour: int
    dash: int


@dataclass(frozen=True)
class Panel:
    """The lines of one figure, and a title of what they have in common."""

    title: str
    series: tuple[Series, ...]

    @property
    def points(self) -> list[Row]:
        """The points of all lines."""
        return [row for one in self.series for row in one.line.points]


def make_panels(lines: Sequence[Line]) -> list[Panel]:
    """Distribute the lines over panels, keeping their order.

    Where several lines do one task, a panel has lines of one task alone. What its lines do not share is in
    their names, and what they share and others do not in its title.
    """
    axes = _find_axes(lines)
    if max(Counter(line.task for line in lines).values(), default=1) > 1:
        axes.sort(key=lambda axis: axis[0] not in WAYS)
        drawn = [axis for axis in axes if axis[0] in WAYS][:2]
    else:
        drawn = axes[:2]
    counts = [len({describe(line, axis) for line in lines}) for axis in drawn]
    if len(drawn) > 1 and counts[1] > _DASHES:
        drawn = drawn[::-1] if counts[0] <= _DASHES else drawn[:1]
    coloured, dashed = [*drawn, (), ()][:2]
    rest = [column for axis in axes if axis not in drawn for column in axis]
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(describe(line, rest), []).append(line)
    colours = _number_values(lines, coloured)
    return [
        Panel(title, tuple(_make_series(part, coloured, dashed, colours)))
        for title, own in found.items()
        for part in _split(own, colours, coloured)
    ]


def _find_axes(lines: Sequence[Line]) -> list[Axis]:
    """Find the columns that vary, those together that vary as one; ways and tasks apart."""
    keys, axes = [line.key for line in lines], list[Axis]()
    for column in find_varied(lines):
        alike = (axis for axis in axes if (axis[0] in WAYS) == (column in WAYS))
        leader = next((axis for axis in alike if follows(keys, column, axis[0])), None)
        if leader:
            axes[axes.index(leader)] = (*leader, column)
        else:
            axes.append((column,))
    return axes


def _split(lines: Sequence[Line], colours: dict[str, int], coloured: Axis) -> list[list[Line]]:
    """Split the lines into parts in which each value of the coloured axis has its own colour."""
    parts: dict[int, list[Line]] = {}
    for line in lines:
        parts.setdefault(colours[describe(line, coloured)] // len(PALETTE), []).append(line)
    return list(parts.values())


def _make_series(
    lines: Sequence[Line], coloured: Axis, dashed: Axis, colours: dict[str, int]
) -> list[Series]:
    dashes = _number_values(lines, dashed)
    columns = sorted([*coloured, *dashed], key=IDENTITY.index)
    return [
        Series(
            describe(line, columns) or line.label,
            line,
            colours[describe(line, coloured)] % len(PALETTE),
            dashes[describe(line, dashed)],
        )
        for line in lines
    ]


def _number_values(lines: Sequence[Line], columns: Axis) -> dict[str, int]:
    """Give each value of these columns a number, in the order in which they come."""
    values = dict.fromkeys(describe(line, columns) for line in lines)
    return {value: number for number, value in enumerate(values)}
