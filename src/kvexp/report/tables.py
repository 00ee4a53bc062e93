"""Make tables of a panel's points."""

import math
from dataclasses import dataclass

from kvexp.measurement import Row
from kvexp.report.format import DASH, number, optional, percent
from kvexp.report.leaders import find_fastest, find_shared_sizes
from kvexp.report.panels import Panel
from kvexp.results.verdict import interval

_ABREAST = 3


@dataclass(frozen=True)
class Cell:
    """One point in a table, as texts."""

    latency: str
    between: str
    copy: str
    gb_per_s: str
    fastest: bool


@dataclass(frozen=True)
class Table:
    """Points of a panel: a line for each num_tokens, with a cell or None for each of the names."""

    names: tuple[str, ...]
    lines: tuple[tuple[int, tuple[Cell | None, ...]], ...]


def make_tables(panel: Panel) -> tuple[Table, ...]:
    """Make tables of the panel's points, with few enough lines in each that it fits on paper."""
    group = {one.name: one.line for one in panel.series}
    sizes = sorted({row["num_tokens"] for line in group.values() for row in line.points})
    ranked = {name: line for name, line in group.items() if line.is_ranked}
    leaders = {size: find_fastest(ranked, size) for size in find_shared_sizes(ranked.values())}
    names = list(group)
    abreast = math.ceil(len(names) / math.ceil(len(names) / _ABREAST))
    tables = []
    for start in range(0, len(names), abreast):
        own = names[start : start + abreast]
        lines = [
            (size, tuple(_make_cell(group[name].at(size), leaders.get(size) == (name,)) for name in own))
            for size in sizes
        ]
        tables.append(Table(tuple(own), tuple(lines)))
    return tuple(tables)


def _make_cell(row: Row | None, fastest: bool) -> Cell | None:
    if row is None:
        return None
    low, high = interval(row)
    return Cell(
        number(row["latency_us"]),
        f"{number(low)}{DASH}{number(high)}",
        percent(row.get("copy_fraction")),
        optional(row.get("gb_per_s")),
        fastest,
    )
