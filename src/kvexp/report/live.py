"""Render a running sweep for a terminal: its progress, its curves so far, its last rows."""

import math
import textwrap
from collections.abc import Sequence
from datetime import datetime, timedelta

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvexp.measurement import Row
from kvexp.report.format import DASH, duration, number, optional, percent
from kvexp.results.labels import group_by_curve, label_curves
from kvexp.results.sweep_state import State

_LEVELS = "▁▂▃▄▅▆▇█"
_MARKS = {"verified": "v", "skipped": "s", "incorrect": "!", "failed": "!"}
_TO_COME = "·"
LEGEND = (
    "In the column latency each point is a bar, on one logarithmic scale, or a sign: v verified, s skipped, "
    "! incorrect or failed, · to come."
)
"""Explain the signs of a curve."""
_LAST = 5
_LONGEST_OUTCOME = 60
_OTHER_LINES = 11  # lines besides those of the curves


def describe_progress(state: State, now: datetime) -> str:
    """Describe how many points are done, and when the sweep will end."""
    done = f"{len(state.rows)}/{state.points} points" if state.points else f"points: {len(state.rows)}"
    parts = [state.name, done]
    if state.worker is None:
        parts.append("ended")
    elif state.seconds_left is not None:
        until = now + timedelta(seconds=state.seconds_left)
        parts.append(f"about {duration(state.seconds_left)} left, until {until:%H:%M:%S}")
    else:
        parts.append(f"at work: {state.worker}")
    return "  ".join(parts)


def render_state(state: State, now: datetime, console: Console) -> RenderableType:
    """Render the progress, as many of the newest curves as fit the terminal, and the last rows."""
    parts: list[RenderableType] = [Text(describe_progress(state, now), style="bold")]
    if state.rows:
        most = max(_LAST, console.height - _OTHER_LINES) if console.is_terminal else len(state.rows)
        parts += [Text(), _render_curves(state, most), Text(), _render_rows(state.rows)]
    return Group(*parts)


def _render_curves(state: State, most: int) -> Table:
    """Render a line for each curve: its points as bars on one logarithmic scale, and its numbers."""
    table = _make_table("curve", "points", "latency", "num_tokens", "µs", "GB/s", "of copy")
    grouped = state.curves
    timed = [row["latency_us"] for row in state.rows if row["status"] == "ok"]
    names = label_curves(grouped)
    if len(grouped) > most:
        table.add_row(Text(f"{len(grouped) - most} curves before these", style="dim"))
    for name, curve in list(zip(names, grouped, strict=True))[-most:]:
        size, ok = state.size(curve), [row for row in curve if row["status"] == "ok"]
        bars = "".join(_make_bar(row, min(timed, default=1), max(timed, default=1)) for row in curve)
        table.add_row(
            Text(name),
            f"{len(curve)}/{size}",
            bars + _TO_COME * (size - len(curve)),
            _format_ends(curve, "num_tokens"),
            _format_ends(ok, "latency_us"),
            optional(max((row["gb_per_s"] for row in ok if row.get("gb_per_s") is not None), default=None)),
            percent(max((row["copy_fraction"] for row in ok if row.get("copy_fraction")), default=None)),
        )
    return table


def _render_rows(found: Sequence[Row]) -> Table:
    table = _make_table("begun", "curve", "num_tokens", "outcome")
    grouped = group_by_curve(found)
    names = {id(row): name for name, own in zip(label_curves(grouped), grouped, strict=True) for row in own}
    for row in found[-_LAST:]:
        begun = str(row.get("started_at") or "")[11:19]
        table.add_row(Text(begun), Text(names[id(row)]), f"{row['num_tokens']:,}", Text(_format_outcome(row)))
    return table


def _format_outcome(row: Row) -> str:
    if row["status"] == "ok":
        return f"{number(row['latency_us'])} µs"
    return textwrap.shorten(f"{row['status']}: {row.get('reason')}", _LONGEST_OUTCOME, placeholder=" …")


def _make_table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, no_wrap=True)
    return table


def _make_bar(row: Row, least: float, most: float) -> str:
    if row["status"] != "ok":
        return _MARKS[row["status"]]
    share = math.log(row["latency_us"] / least) / math.log(most / least) if most > least else 0
    return _LEVELS[round(share * (len(_LEVELS) - 1))]


def _format_ends(curve: Sequence[Row], column: str) -> str:
    """Format the first and the last value along the curve."""
    values = [row[column] for row in curve]
    if not values:
        return DASH
    first, last = (
        f"{value:,}" if column == "num_tokens" else number(value) for value in (values[0], values[-1])
    )
    return first if len(values) == 1 else f"{first} … {last}"
