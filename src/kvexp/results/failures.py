"""What went wrong in a sweep: every curve with the command that repeats it alone."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

WRONG = ("incorrect", "failed")


def are_wrong(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a row needs attention."""
    return any(row["status"] in WRONG for row in rows)


def listed(curves: Sequence[tuple[str, Sequence[str], Sequence[Mapping[str, Any]]]]) -> str:
    """A line for each wrong curve with its wrong points, and one with the command; empty when there are none.

    Args:
        curves: Of each curve its label, the words after `python -m kvexp` that measure it alone, its rows.
    """
    wrong = [curve for curve in curves if are_wrong(curve[2])]
    if not wrong:
        return ""
    lines = [f"{len(wrong)} of {len(curves)} curves went wrong; each command repeats one:"]
    for label, words, rows in wrong:
        counts = Counter(row["status"] for row in rows)
        said = ", ".join(f"{counts[status]} {status}" for status in WRONG if counts[status])
        tokens = ", ".join(str(row["num_tokens"]) for row in rows if row["status"] in WRONG)
        lines.append(f"  {label}: {said} (num_tokens {tokens})")
        lines.append(f"    {shlex.join(['python', '-m', 'kvexp', *words])}")
    return "\n".join(lines)
