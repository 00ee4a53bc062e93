"""What a person is told when a sweep has ended, and of trouble on the way."""

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from kvexp import report
from kvexp.measurement import STATUSES, is_wrong
from kvexp.results import merge

Row = Mapping[str, Any]

Curve = tuple[str, tuple[str, ...], Sequence[Row]]
"""A curve's label, the words after `python -m kvexp` that measure it alone, its rows."""


def tell(rows: Sequence[Row], curves: Sequence[Curve], home: Path, repeat: int, untried: int) -> None:
    """The table, then what went wrong with the way to repeat it, then where the rows are.

    Args:
        rows: Of the whole sweep.
        curves: Those that were begun, each as often as it was.
        home: The sweep's folder.
        repeat: How many processes have measured each curve.
        untried: Points that `fail_fast` left.
    """
    try:
        report.print_summary(merge.merge_repetitions(rows), Console())
    finally:  # on stderr, also where stdout takes nothing more
        if repeat > 1:
            say(f"each line is the process in the middle of {repeat}")
        if again := list_failures(_whole(curves)):
            say(again)
        if untried:
            say(f"kvexp: fail_fast=true ended the sweep there; {untried} points were not tried")
        say(f"rows: {home}")


def list_failures(curves: Sequence[Curve]) -> str:
    """List each wrong curve: its wrong points, and the command that repeats it; empty when there are none."""
    wrong = [
        (curve, points)
        for curve in curves
        if (points := [row for row in curve[2] if is_wrong(row["status"])])
    ]
    if not wrong:
        return ""
    lines = [f"{len(wrong)} of {len(curves)} curves went wrong; each command repeats one:"]
    for (label, words, _), points in wrong:
        counts = Counter(row["status"] for row in points)
        how_many = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        tokens = ", ".join(str(row["num_tokens"]) for row in points)
        lines.append(f"  {label}: {how_many} (num_tokens {tokens})")
        lines.append(f"    {shlex.join(['python', '-m', 'kvexp', *words])}")
    return "\n".join(lines)


def _whole(curves: Sequence[Curve]) -> list[Curve]:
    """Each curve once, with the rows that stand for those of all its processes."""
    found: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for label, words, rows in curves:
        found.setdefault((label, words), []).extend(rows)
    return [(*curve, merge.merge_repetitions(rows)) for curve, rows in found.items()]


def say(line: str) -> None:
    """The line stands on stderr; where its reader has left or its disk is full it does not."""
    with suppress(OSError):
        print(line, file=sys.stderr)  # noqa: T201  # what a person reads beside the table
