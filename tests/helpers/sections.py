"""Build the part of a report that shows one machine's curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvexp.report.content import Section, build_content


def section(*curves: Sequence[Mapping[str, Any]], processes: int = 1) -> Section:
    """Return the one section of a report on curves that this many processes measured."""
    rows = [dict(row) for rows in curves for row in rows]
    if processes > 1:
        rows = [row | {"repetition": number} for number in range(1, processes + 1) for row in rows]
    (only,) = build_content([row | {"sweep": "s", "command": ""} for row in rows]).sections
    return only
