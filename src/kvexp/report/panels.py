"""Which lines share a figure: colour for one axis, dashes for a second, a panel for each of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvexp.report.curves import Line, named, value, varied

COLOURS, DASHES = 8, 4
"""How many lines a figure can tell apart by either."""


@dataclass(frozen=True)
class Series:
    """A line in a figure; two with the same colour differ in their dashes."""

    name: str
    line: Line
    colour: int
    dash: int


@dataclass(frozen=True)
class Panel:
    """The lines of one figure, and what they have in common in words."""

    title: str
    series: tuple[Series, ...]


def panels(lines: Sequence[Line]) -> list[Panel]:
    """Every line in one panel, in the order of the lines."""
    told_apart = varied(lines)
    coloured, dashed = told_apart[:1], told_apart[1:2]
    if dashed and len({value(line, dashed[0]) for line in lines}) > DASHES:
        dashed = []
    rest = told_apart[len(coloured) + len(dashed) :]
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(named(line, rest), []).append(line)
    colours = _numbers(lines, coloured)
    return [
        Panel(title, tuple(_series(part, coloured, dashed, colours)))
        for title, own in found.items()
        for part in _parts(own, colours, coloured)
    ]


def _parts(lines: Sequence[Line], colours: dict[str, int], coloured: Sequence[str]) -> list[list[Line]]:
    """The lines in as many parts as it takes for each to have a colour of its own."""
    parts: dict[int, list[Line]] = {}
    for line in lines:
        parts.setdefault(colours[named(line, coloured)] // COLOURS, []).append(line)
    return list(parts.values())


def _series(
    lines: Sequence[Line], coloured: Sequence[str], dashed: Sequence[str], colours: dict[str, int]
) -> list[Series]:
    dashes = _numbers(lines, dashed)
    columns = [*coloured, *dashed]
    return [
        Series(
            named(line, columns) or line.label,
            line,
            colours[named(line, coloured)] % COLOURS,
            dashes[named(line, dashed)],
        )
        for line in lines
    ]


def _numbers(lines: Sequence[Line], columns: Sequence[str]) -> dict[str, int]:
    """A number for each value, in the order in which they come."""
    values = dict.fromkeys(named(line, columns) for line in lines)
    return {value: number for number, value in enumerate(values)}
