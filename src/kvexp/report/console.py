"""Rows to a table on the console."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvexp.report.format import number
from kvexp.report.outcomes import Outcome, breaches, outcomes, unique
from kvexp.results.rows import RIGHT, curves, labels

Row = Mapping[str, Any]

_DASH = "–"
_PIPE_WIDTH = 1000


class _Pipe(Console):
    """A console whose reader may leave (`| head -1`): it falls silent, and the sweep goes on."""

    def on_broken_pipe(self) -> None:
        """What is still to be printed goes nowhere; rich would end the process instead."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def summary(rows: Sequence[Row], console: Console) -> None:
    """The sweep is printed: a table of what is right, what must be known of it, then every reason once."""
    if not console.is_terminal:
        # A pipe has no width of its own: every cell and every line stays whole.
        console = _Pipe(file=console.file, width=_PIPE_WIDTH, color_system=None)
    grouped = curves(rows)
    names = labels(grouped)
    table = _table(grouped, names)
    if table.row_count:
        console.print(table)
    for caption in _captions(rows):
        console.print(Text(caption, style="dim"), soft_wrap=not console.is_terminal)
    reasons = [*breaches(grouped, names), *_remarks(grouped, names), *outcomes(grouped, names)]
    _print_reasons(reasons, console)


def _table(grouped: Sequence[Sequence[Row]], names: Sequence[str]) -> Table:
    """One line for each `ok` or `verified` row; a curve's label stands on its first line."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("curve", overflow="fold")
    for column in ("num_tokens", "latency (µs)", "p20–p80", "GB/s", "of copy"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, curve in zip(names, grouped, strict=True):
        shown = [row for row in curve if row["status"] in ("ok", "verified")]
        if shown and table.row_count:
            table.add_row()
        for position, row in enumerate(sorted(shown, key=lambda row: row["num_tokens"])):
            # Text, not str: rich would take [...] in a label for markup.
            table.add_row(Text(name if position == 0 else ""), *_cells(row))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    tokens = f"{row['num_tokens']:,}"
    if row["status"] == "verified":
        return tokens, "verified", _DASH, _DASH, _DASH
    low, high = _optional(row, "latency_us_p20"), _optional(row, "latency_us_p80")
    fraction = row.get("copy_fraction")
    return (
        tokens,
        number(row["latency_us"]),
        f"{low}–{high}",
        _optional(row, "gb_per_s"),
        _DASH if fraction is None else f"{100 * fraction:.0f} %",
    )


def _optional(row: Row, column: str) -> str:
    value = row.get(column)
    return _DASH if value is None else number(value)


def _captions(rows: Sequence[Row]) -> list[str]:
    """The machine and whose clock, once for each combination that was measured."""
    measured = [row for row in rows if row["status"] in ("ok", "verified")]
    return unique(
        f"{row.get('device_name') or row.get('device')}, mode {row.get('mode')}, "
        f"timer {row.get('timer')}, {row.get('op')}"
        for row in measured
    )


def _remarks(grouped: Sequence[Sequence[Row]], names: Sequence[str]) -> list[Outcome]:
    """Return what must be known of right points: what disturbed them, and which are no cache writes."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, curve in zip(names, grouped, strict=True):
        for row in curve:
            if row.get("throttled"):
                found["throttled", row["throttled"]].append(name)
            if row.get("other_processes"):
                found["shared", "other processes were on the GPU"].append(name)
            if row["status"] in RIGHT and row.get("impl") == "copy":
                found["equal copy", "a plain copy of as many bytes, no cache write"].append(name)
    return [Outcome(*key, tuple(unique(points)), len(points)) for key, points in sorted(found.items())]


def _print_reasons(reasons: Sequence[Outcome], console: Console) -> None:
    """Each once and whole, with the curves and the number of points that share it."""
    # On a terminal rich wraps; in a pipe a line stays a line, so that grep finds it whole.
    soft_wrap = not console.is_terminal
    for outcome in reasons:
        first, *rest = outcome.reason.splitlines() or [""]
        heading = f"{outcome.whose}: {outcome.count}: {first}"
        console.print(
            Text.assemble((f"{outcome.status:<11}", _STYLES[outcome.status]), heading), soft_wrap=soft_wrap
        )
        for line in rest:
            _print_indented(line, console)


def _print_indented(line: str, console: Console) -> None:
    if console.is_terminal:
        console.print(Padding(Text(line), (0, 0, 0, 4)))
    else:
        console.print(Text("    " + line), soft_wrap=True)


_STYLES = {
    "equal copy": "dim",
    "ok, but": "yellow",
    "throttled": "yellow",
    "shared": "yellow",
    "skipped": "yellow",
    "verified": "green",
    "incorrect": "bold red",
    "failed": "bold red",
}
