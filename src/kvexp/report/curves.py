"""Group rows by machine and curve into lines, and label each line by what distinguishes it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvexp.host.terminal import make_printable
from kvexp.measurement import Row, is_wrong
from kvexp.results import labels
from kvexp.results.labels import CURVE, format_column, group_by_curve, label_curves, simplify_curves
from kvexp.results.load import SWEEP
from kvexp.results.plan import is_on_gpu, resolve_curve

IDENTITY = (*CURVE, SWEEP)
"""The columns that are fixed along a line; the sweep counts only where several measured a curve."""

WAYS = ("impl", "layout", "impl_options")
"""The columns by which a task can be done in several ways; in the others two tasks differ."""

MACHINE = ("device_name", "driver", "host")
"""Rows that differ in one of these never share a line, a figure or a comparison. Equal GPUs of a machine do:
what they differ by counts as noise."""


@dataclass(frozen=True)
class Line:
    """One curve on one machine.

    Attributes:
        label: Its name, see `name_curves`.
        key: Its value of each column of IDENTITY, as `simplify_curves` gives it.
        points: Its `ok` rows by num_tokens.
        is_right: No point of the curve was wrong or failed.
    """

    label: str
    key: Mapping[str, Any]
    points: tuple[Row, ...]
    is_right: bool = True

    @property
    def task(self) -> tuple[Any, ...]:
        """Return what it does: its key without the way that it is done."""
        return tuple(value for column, value in self.key.items() if column not in WAYS)

    @property
    def is_copy(self) -> bool:
        """Say whether it is the line of `impl=copy`, which is not an implementation and never ranked."""
        return bool(self.key["impl"] == "copy")

    @property
    def is_ranked(self) -> bool:
        """Say whether it can be compared: it is not the equal copy's, and was right at every point."""
        return self.is_right and not self.is_copy

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
        """The lines that can be compared."""
        return [line for line in self.lines if line.is_ranked]

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
    has_gpu = is_on_gpu(rows)  # of a process that died before it had a device, the rows say `auto`
    wrong = {resolve_curve(row, has_gpu) for row in rows if is_wrong(row["status"])}
    return [
        Machine(own[0], tuple(_make_lines(own, lambda row: resolve_curve(row, has_gpu) not in wrong)))
        for own in found.values()
    ]


def find_varied(lines: Sequence[Line]) -> list[str]:
    """Find the columns of IDENTITY that distinguish the lines, those that people vary most first."""
    return labels.find_varied([line.key for line in lines], IDENTITY)


def describe_value(line: Line, column: str) -> str:
    """Describe a line's value of one column by a word that can stand alone."""
    return _format(line, column) or f"{column.removesuffix('_options')} as it comes"


def describe(line: Line, columns: Iterable[str]) -> str:
    """Describe a line by its values of these columns, without empty ones."""
    return " ".join(filter(None, (_format(line, column) for column in columns)))


def name_curves(grouped: Sequence[Sequence[Row]]) -> list[str]:
    """Name each curve as its sweep does, with the sweep where several measured it."""
    names = label_curves(grouped)
    times = Counter(names)
    return [
        f"{name} ({curve[0][SWEEP]})" if times[name] > 1 else name
        for name, curve in zip(names, grouped, strict=True)
    ]


def _format(line: Line, column: str) -> str:
    return str(line.key[SWEEP]) if column == SWEEP else format_column(line.key, column)


def _make_lines(rows: Sequence[Row], is_right: Callable[[Row], bool]) -> list[Line]:
    by_curve = [curve for own in labels.group_rows(rows, [SWEEP]).values() for curve in group_by_curve(own)]
    repeated = len(group_by_curve(rows)) < len(by_curve)
    lines = []
    alike = simplify_curves([curve[0] for curve in by_curve])
    for name, columns, curve in zip(name_curves(by_curve), alike, by_curve, strict=True):
        sweep = curve[0].get(SWEEP) if repeated else None
        key = {column: columns.get(column) for column in CURVE} | {SWEEP: sweep}
        points = tuple(sorted(curve, key=lambda row: row["num_tokens"]))
        lines.append(Line(name, key, points, is_right(curve[0])))
    return lines
