"""Print the summary of a sweep."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kvexp import report
from kvexp.host.plain_file import find_gone
from kvexp.host.terminal import say
from kvexp.measurement import STATUSES, Row, is_wrong
from kvexp.results import merge

Curve = tuple[str, tuple[str, ...], Sequence[Row]]
"""A curve's name, the words after `python -m kvexp` that measure it alone, and its rows."""


def print_summary(
    rows: Sequence[Row],
    curves: Sequence[Curve],
    home: Path,
    repeat: int,
    untried: str,
    tracebacks: Sequence[Path],
) -> None:
    """Print the table, then what went wrong with the commands that repeat it, then where the rows are.

    Args:
        rows: Of the whole sweep.
        curves: Those with new rows, once for each repetition.
        home: The sweep's folder.
        repeat: How many processes have measured each curve.
        untried: Why points were not tried, and how many; empty when none was left.
        tracebacks: The files of those of its failed points.
    """
    try:
        report.print_summary(merge.merge_repetitions(rows), report.PrintableConsole())
    finally:  # on stderr, also where stdout takes nothing more
        if repeat > 1:
            say(f"each line is the process in the middle of {repeat}")
        if again := list_failures(_merge_repetitions(curves)):
            say(again)
        if untried:
            say(f"kvexp: {untried}")
        if tracebacks:
            say(f"tracebacks: {tracebacks[0]}{f' and {len(tracebacks) - 1} more' * (len(tracebacks) > 1)}")
        gone = find_gone(home)
        say(f"rows: lost, since {gone} is gone" if gone else f"rows: {home}")


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
    for (name, words, _), points in wrong:
        counts = Counter(row["status"] for row in points)
        how_many = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        tokens = ", ".join(str(row["num_tokens"]) for row in points)
        lines.append(f"  {name}: {how_many} (num_tokens {tokens})")
        lines.append(f"    {shlex.join(['python', '-m', 'kvexp', *words])}")
    return "\n".join(lines)


def _merge_repetitions(curves: Sequence[Curve]) -> list[Curve]:
    """Return each curve once, the rows of its repetitions merged; see `merge.merge_repetitions`."""
    found: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for name, words, rows in curves:
        found.setdefault((name, words), []).extend(rows)
    return [(*curve, merge.merge_repetitions(rows)) for curve, rows in found.items()]
