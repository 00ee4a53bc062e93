"""Rows to lines: apart by machine, then by curve, each with a name that tells it from the others."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvexp.results.load import SWEEP
from kvexp.results.rows import CURVE, curves, labels, word

Row = Mapping[str, Any]

IDENTITY = (*CURVE, SWEEP)
"""What is fixed along a line; the sweep counts only where a curve was measured in several."""

MACHINE = ("device_name", "device_uuid", "driver", "host")
"""Rows that differ in one of these are never in one line, one figure or one comparison."""


@dataclass(frozen=True)
class Line:
    """One curve on one machine.

    Attributes:
        label: What tells it from the machine's other lines.
        key: Its value of each column of IDENTITY.
        points: Its `ok` rows by num_tokens.
    """

    label: str
    key: Mapping[str, Any]
    points: tuple[Row, ...]

    @property
    def is_copy(self) -> bool:
        """Whether it is that of `impl=copy`, which is no implementation and never ranked."""
        return bool(self.key["impl"] == "copy")

    def at(self, num_tokens: int) -> Row | None:
        """The point of that many tokens, if there is one."""
        return next((row for row in self.points if row["num_tokens"] == num_tokens), None)


@dataclass(frozen=True)
class Machine:
    """A machine and the lines that were measured on it."""

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


def machines(rows: Sequence[Row]) -> list[Machine]:
    """Each machine that has an `ok` row, with its lines."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            found.setdefault(tuple(row.get(column) for column in MACHINE), []).append(row)
    return [Machine(own[0], tuple(_lines(own))) for own in found.values()]


def varied(lines: Sequence[Line]) -> list[str]:
    """The columns of IDENTITY that tell the lines apart, those that people vary most first.

    A column that says no more than those before it is left out.
    """
    chosen: list[str] = []
    told_apart = 1
    for column in IDENTITY:
        kinds = len({tuple(line.key[name] for name in (*chosen, column)) for line in lines})
        if kinds > told_apart:
            chosen.append(column)
            told_apart = kinds
    return chosen


def value(line: Line, column: str) -> str:
    """A line's value of one column, as a word that can stand alone."""
    return _word(line, column) or f"{column.removesuffix('_options')} as it comes"


def named(line: Line, columns: Iterable[str]) -> str:
    """The words of these columns, those that say nothing left out."""
    return " ".join(filter(None, (_word(line, column) for column in columns)))


def _word(line: Line, column: str) -> str:
    if column == SWEEP:
        return str(line.key[SWEEP])
    if column == "kv_cache_dtype":  # `auto` alone says nothing of what it is about
        return f"{line.key[column]} cache"
    return word(line.key, column)


def _lines(rows: Sequence[Row]) -> list[Line]:
    by_sweep: dict[Any, list[Row]] = {}
    for row in rows:
        by_sweep.setdefault(row.get(SWEEP), []).append(row)
    apart = [(sweep, curve) for sweep, own in by_sweep.items() for curve in curves(own)]
    times = Counter(tuple(curve[0].get(column) for column in CURVE) for _, curve in apart)
    repeated = max(times.values()) > 1
    lines = []
    for sweep, curve in apart:
        key = {column: curve[0].get(column) for column in CURVE} | {SWEEP: sweep if repeated else None}
        lines.append(Line("", key, tuple(sorted(curve, key=lambda row: row["num_tokens"]))))
    lines = _with_few_options(lines)
    if len(lines) == 1:
        return [replace(lines[0], label=labels([rows])[0])]
    told_apart = varied(lines)
    return [replace(line, label=named(line, told_apart)) for line in lines]


def _with_few_options(lines: Sequence[Line]) -> list[Line]:
    """The lines, of whose options only those are left in the key that differ: the others say nothing."""
    for column, owner in (("impl_options", "impl"), ("timer_options", "timer")):
        held = [(line.key[owner], _options(line, column)) for line in lines]
        kept = []
        for line, (name, options) in zip(lines, held, strict=True):
            others = [other for its, other in held if its == name]
            differing = {
                option: value
                for option, value in options.items()
                if any(other.get(option, ...) != value for other in others)
            }
            kept.append(replace(line, key={**line.key, column: json.dumps(differing)}))
        lines = kept
    return list(lines)


def _options(line: Line, column: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line.key[column] or "{}")
    return found
