"""Choose which lines share a figure: colours for one axis, dashes for a second, panels for the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvexp.measurement import Row
from kvexp.report.curves import Line, describe, describe_value, find_varied

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
"""Okabe and Ito's colours, which the colour-blind can distinguish; for their yellow two of Tol's."""
_DASHES = 4


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
    """Distribute the lines over panels, keeping their order."""
    columns = find_varied(lines)
    coloured, dashed = columns[:1], columns[1:2]
    if dashed and len({describe_value(line, dashed[0]) for line in lines}) > _DASHES:
        dashed = []
    rest = columns[len(coloured) + len(dashed) :]
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(describe(line, rest), []).append(line)
    colours = _number_values(lines, coloured)
    return [
        Panel(title, tuple(_make_series(part, coloured, dashed, colours)))
        for title, own in found.items()
        for part in _split(own, colours, coloured)
    ]


def _split(lines: Sequence[Line], colours: dict[str, int], coloured: Sequence[str]) -> list[list[Line]]:
    """Split the lines into parts in which each value of the coloured axis has its own colour."""
    parts: dict[int, list[Line]] = {}
    for line in lines:
        parts.setdefault(colours[describe(line, coloured)] // len(PALETTE), []).append(line)
    return list(parts.values())


def _make_series(
    lines: Sequence[Line], coloured: Sequence[str], dashed: Sequence[str], colours: dict[str, int]
) -> list[Series]:
    dashes = _number_values(lines, dashed)
    columns = [*coloured, *dashed]
    return [
        Series(
            describe(line, columns) or line.label,
            line,
            colours[describe(line, coloured)] % len(PALETTE),
            dashes[describe(line, dashed)],
        )
        for line in lines
    ]


def _number_values(lines: Sequence[Line], columns: Sequence[str]) -> dict[str, int]:
    """Give each value of these columns a number, in the order in which they come."""
    values = dict.fromkeys(describe(line, columns) for line in lines)
    return {value: number for number, value in enumerate(values)}
