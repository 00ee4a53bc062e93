"""Print rows as a table on the console."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from kvexp.host.terminal import make_printable
from kvexp.measurement import Row, is_right
from kvexp.report.format import DASH, number, optional, percent
from kvexp.report.outcomes import Outcome, group_breaches, group_outcomes, measure_noise, unique
from kvexp.results.labels import group_by_curve, label_curves
from kvexp.results.point_identity import REPETITION

_PIPE_WIDTH = 1000


class PrintableConsole(Console):
    """A console that shows printable characters alone, whatever stands in a row.

    A pipe has no width of its own: every cell and every line stays whole. One that is closed early
    (`| head -1`) makes the console quiet, and the sweep goes on.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.is_terminal:
            self.width = _PIPE_WIDTH

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of something, printable; rich's own controls, which are apart, stay."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else make_printable(segment.text)
            yield segment._replace(text=text)

    def on_broken_pipe(self) -> None:
        """Discard what is still to be printed; rich would end the process instead."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def print_summary(rows: Sequence[Row], console: PrintableConsole) -> None:
    """Print a sweep: a table of the right points, remarks on them, then every other reason once."""
    grouped = group_by_curve(rows)
    names = label_curves(grouped)
    table = _make_table(grouped, names)
    if table.row_count:
        console.print(table)
    for caption in _list_setups(rows):
        console.print(Text(caption, style="dim"), soft_wrap=not console.is_terminal)
    reasons = [
        *group_breaches(grouped, names),
        *_group_remarks(grouped, names),
        *group_outcomes(grouped, names),
    ]
    _print_reasons(reasons, console)


def _make_table(grouped: Sequence[Sequence[Row]], names: Sequence[str]) -> Table:
    """Make a table with a line for each right row; a curve's label stands on its first line."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("curve", overflow="fold")
    for column in ("num_tokens", "latency (µs)", "p20–p80", "GB/s", "of copy"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, curve in zip(names, grouped, strict=True):
        right = [row for row in curve if is_right(row["status"])]
        if right and table.row_count:
            table.add_row()
        for position, row in enumerate(sorted(right, key=lambda row: row["num_tokens"])):
            # Text, not str: rich would take [...] in a label for markup.
            table.add_row(Text(name if position == 0 else ""), *_format_row(row))
    return table


def _format_row(row: Row) -> tuple[str, ...]:
    tokens = f"{row['num_tokens']:,}"
    if row["status"] == "verified":
        return tokens, "verified", DASH, DASH, DASH
    low, high = optional(row.get("latency_us_p20")), optional(row.get("latency_us_p80"))
    return (
        tokens,
        number(row["latency_us"]),
        f"{low}{DASH}{high}",
        optional(row.get("gb_per_s")),
        percent(row.get("copy_fraction")),
    )


def _list_setups(rows: Sequence[Row]) -> list[str]:
    """List the devices, modes, timers and ops that were measured, each combination once."""
    measured = [row for row in rows if is_right(row["status"])]
    return unique(
        f"{row.get('device_name') or row.get('device')}, mode {row.get('mode')}, "
        f"timer {row.get('timer')}, {row.get('op')}"
        for row in measured
    )


def _group_remarks(grouped: Sequence[Sequence[Row]], names: Sequence[str]) -> list[Outcome]:
    """Group what else to know of the points: what disturbed them, and which are plain copies."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    noisy = [row for curve in grouped for row in curve if measure_noise(row)]
    repeated = any(row.get(REPETITION) for row in noisy)
    reason = _NOISY.format(
        percent(max(map(measure_noise, noisy), default=0.0)),
        "more processes" if repeated else "repeat=5, which compares processes",
    )
    for name, curve in zip(names, grouped, strict=True):
        for row in curve:
            if measure_noise(row):
                found["noisy", reason].append(name)
            if row.get("throttled"):
                found["throttled", row["throttled"]].append(name)
            if row.get("other_processes"):
                found["shared", "other processes were on the GPU"].append(name)
            if is_right(row["status"]) and row.get("impl") == "copy":
                found["equal copy", "a plain copy of as many bytes, no cache write"].append(name)
    return [Outcome(*key, tuple(unique(points)), len(points)) for key, points in sorted(found.items())]


def _print_reasons(reasons: Sequence[Outcome], console: Console) -> None:
    """Print each reason whole, with its curves and the number of its points."""
    # On a terminal rich wraps; in a pipe a line stays a line, so that grep finds it whole.
    soft_wrap = not console.is_terminal
    for outcome in reasons:
        first, *rest = outcome.reason.splitlines() or [""]
        heading = f"{outcome.whose}: {outcome.count}: {first}"
        console.print(
            Text.assemble((f"{outcome.status:<11}", _STYLES[outcome.status]), heading), soft_wrap=soft_wrap
        )
        for line in rest:
            indented = Text("    " + line) if soft_wrap else Padding(Text(line), (0, 0, 0, 4))
            console.print(indented, soft_wrap=soft_wrap)


_NOISY = (
    "p20 to p80 is up to {} of the median wide: something else ran; "
    "end it and measure again, or measure with {}"
)
_STYLES = {
    "equal copy": "dim",
    "ok, but": "yellow",
    "noisy": "yellow",
    "throttled": "yellow",
    "shared": "yellow",
    "skipped": "yellow",
    "verified": "green",
    "incorrect": "bold red",
    "failed": "bold red",
}
