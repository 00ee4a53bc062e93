"""The flags, the printed table and the exit code of a comparison."""

import argparse
import math
from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from kvexp.errors import ConfigError
from kvexp.report import PrintableConsole, number
from kvexp.results.compare import WORST_FIRST, Point

FAILED = 1
_FAIL_ON = "slower,broken,missing"
_STYLES = {"broken": "bold red", "missing": "red", "slower": "red", "ambiguous": "yellow", "faster": "green"}
_DASH = "–"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every comparison has; `fail_on` becomes a set of verdicts."""
    parser.add_argument("--across", action="store_true", help="compare also across GPUs and drivers")
    parser.add_argument(
        "--tolerance", type=_parse_tolerance, help="by how much two processes differ, for example 0.02"
    )
    parser.add_argument(
        "--fail-on", type=_parse_verdicts, default=_FAIL_ON, metavar="VERDICTS", help=f"default: {_FAIL_ON}"
    )


def exit_code(points: Sequence[Point], fail_on: set[str]) -> int:
    """Return FAILED where a point has one of these verdicts, else 0."""
    return FAILED if fail_on & {point.word for point in points} else 0


def print_table(points: Sequence[Point]) -> None:
    """Print the points in their order, and how many have each verdict."""
    console = PrintableConsole()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("verdict", no_wrap=True)
    table.add_column("curve", overflow="fold")
    for column in ("num_tokens", "baseline (µs)", "candidate (µs)", "ratio", "between"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for point in points:
        table.add_row(Text(point.word, _STYLES.get(point.word, "")), Text(point.label), *_format(point))
    console.print(table)
    counts = Counter(point.word for point in points)
    console.print(", ".join(f"{counts[word]} {word}" for word in WORST_FIRST if counts[word]))


def _parse_tolerance(text: str) -> float:
    try:
        part = float(text)
    except ValueError:
        part = math.nan
    if not 0 <= part < 1:
        raise ConfigError(f"--tolerance must be a fraction such as 0.02, not {text!r}")
    return part


def _parse_verdicts(text: str) -> set[str]:
    verdicts = set(filter(None, text.split(",")))
    if not verdicts:
        raise ConfigError(
            f"--fail-on names no verdict, so nothing could fail; one of {', '.join(WORST_FIRST)}"
        )
    if unknown := verdicts - set(WORST_FIRST):
        known = ", ".join(WORST_FIRST)
        raise ConfigError(f"--fail-on {','.join(sorted(unknown))} is no verdict; one of {known}")
    return verdicts


def _format(point: Point) -> tuple[str | Text, ...]:
    times = (_DASH if time is None else number(time) for time in (point.baseline_us, point.candidate_us))
    ratio, between = _DASH, _DASH
    if point.verdict:
        ratio = f"{point.verdict.ratio:.3f}"
        between = f"{point.verdict.low:.3f}{_DASH}{point.verdict.high:.3f}"
    return f"{point.num_tokens:,}", *times, ratio, between, Text(point.note)
