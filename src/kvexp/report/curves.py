"""Group rows by machine and curve into lines, and label each line by what distinguishes it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvexp.host.terminal import make_printable
from kvexp.measurement import Row
from kvexp.results import labels
from kvexp.results.labels import CURVE, OPTIONS, format_column, group_by_curve, label_curves, read_options
from kvexp.results.load import SWEEP

IDENTITY = (*CURVE, SWEEP)
"""The columns that are fixed along a line; the sweep counts only where several measured a curve."""

MACHINE = ("device_name", "driver", "host")
"""Rows that differ in one of these never share a line, a figure or a comparison. Equal GPUs of a machine do:
what they differ by counts as noise."""


@dataclass(frozen=True)
class Line:
    """One curve on one machine.

    Attributes:
        label: What distinguishes it from the machine's other lines.
        key: Its value of each column of IDENTITY.
        points: Its `ok` rows by num_tokens.
    """

    label: str
    key: Mapping[str, Any]
    points: tuple[Row, ...]

    @property
    def is_copy(self) -> bool:
        """Say whether it is the line of `impl=copy`, which is not an implementation and never ranked."""
        return bool(self.key["impl"] == "copy")

    def at(self, num_tokens: int) -> Row | None:
        """Return the point of that many tokens, or None."""
        return next((row for row in self.points if row["num_tokens"] == num_tokens), None)


@dataclass(frozen=True)
class Machine:
    """A machine, by one of its rows, and the lines that were measured on it."""

    row: Row
    lines: tuple[Line, ...]

    @property
    def ranked(self) -> list[Line]:
        """The lines that can be compared: all but the equal copy's."""
        return [line for line in self.lines if not line.is_copy]

    @property
    def name(self) -> str:
        """The device, its host and its driver, as far as they are known."""
        driver = self.row.get("driver")
        parts = (
            self.row.get("device_name") or self.row.get("device"),
            f"host {self.row['host']}" if self.row.get("host") else None,
            f"driver {driver}" if driver else None,
        )
        return ", ".join(str(part) for part in parts if part)


def make_rows_printable(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with printable texts alone, which a font has letters for."""
    return [
        {
            make_printable(column): make_printable(value) if isinstance(value, str) else value
            for column, value in row.items()
        }
        for row in rows
    ]


def group_by_machine(rows: Sequence[Row]) -> list[Machine]:
    """Group the `ok` rows by machine, each with its lines."""
    found = labels.group_rows([row for row in rows if row["status"] == "ok"], MACHINE)
    return [Machine(own[0], tuple(_make_lines(own))) for own in found.values()]


def find_varied(lines: Sequence[Line]) -> list[str]:
    """Find the columns of IDENTITY that distinguish the lines, those that people vary most first."""
    return labels.find_varied([line.key for line in lines], IDENTITY)


def describe_value(line: Line, column: str) -> str:
    """Describe a line's value of one column by a word that can stand alone."""
    return _format(line, column) or f"{column.removesuffix('_options')} as it comes"


def describe(line: Line, columns: Iterable[str]) -> str:
    """Describe a line by its values of these columns, without empty ones."""
    return " ".join(filter(None, (_format(line, column) for column in columns)))


def _format(line: Line, column: str) -> str:
    if column == SWEEP:
        return str(line.key[SWEEP])
    if column == "kv_cache_dtype":  # `auto` alone does not say which column it is of
        return f"{line.key[column]} cache"
    return format_column(line.key, column)


def _make_lines(rows: Sequence[Row]) -> list[Line]:
    by_curve = [curve for own in labels.group_rows(rows, [SWEEP]).values() for curve in group_by_curve(own)]
    repeated = len(group_by_curve(rows)) < len(by_curve)
    lines = []
    for curve in by_curve:
        sweep = curve[0].get(SWEEP) if repeated else None
        key = {column: curve[0].get(column) for column in CURVE} | {SWEEP: sweep}
        lines.append(Line("", key, tuple(sorted(curve, key=lambda row: row["num_tokens"]))))
    lines = _drop_equal_options(lines)
    if len(lines) == 1:
        return [replace(lines[0], label=label_curves([rows])[0])]
    columns = find_varied(lines)
    return [replace(line, label=describe(line, columns)) for line in lines]


def _drop_equal_options(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with only those options in their keys in which lines of one owner differ."""
    for owner in OPTIONS:
        owned = [(line.key[owner], read_options(line.key, owner)) for line in lines]
        changed = []
        for line, (name, options) in zip(lines, owned, strict=True):
            others = [other for its, other in owned if its == name]
            differing = {
                option: value
                for option, value in options.items()
                if any(other.get(option, ...) != value for other in others)
            }
            changed.append(replace(line, key={**line.key, f"{owner}_options": json.dumps(differing)}))
        lines = changed
    return list(lines)
