"""Group rows by curve, and give each curve a short label."""

import json
from collections.abc import Sequence
from typing import Any

from kvexp.case import Case
from kvexp.column import Options, columns_of
from kvexp.measurement import Row

OPTIONS = tuple(
    name.removesuffix("_options") for name, column in columns_of(Case).items() if isinstance(column, Options)
)
"""The groups whose options a row holds, each as the column `GROUP_options`."""

_NAMES = ("impl", "layout", "dtype", "kv_cache_dtype", "scale", "device", "mode", "workload", "op")
_OTHERS = [name for name in columns_of(Case) if name not in (*_NAMES, "num_tokens", "layout_reason")]
CURVE = (*_NAMES, *sorted(_OTHERS, key=lambda name: name.endswith("_options")))
"""The columns of a case that are fixed along a curve, those that people vary most first."""


def group_rows(rows: Sequence[Row], columns: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Group the rows by their values of these columns."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(column) for column in columns), []).append(row)
    return found


def group_by_curve(rows: Sequence[Row]) -> list[list[Row]]:
    """Group the rows by curve: equal in every column of the case but `num_tokens`."""
    return list(group_rows(rows, CURVE).values())


def find_varied(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Find the columns that distinguish the rows, in their order.

    A column that distinguishes no more than those before it (the sizes of a named workload) is left out.
    """
    chosen: list[str] = []
    distinct = 1
    for column in columns:
        kinds = len({tuple(row.get(name) for name in (*chosen, column)) for row in rows})
        if kinds > distinct:
            chosen.append(column)
            distinct = kinds
    return chosen


def label_curves(curves: Sequence[Sequence[Row]]) -> list[str]:
    """Make a short label for each curve by what distinguishes it; a single one has its main choices."""
    if len(curves) == 1:
        words = (curves[0][0].get(column) for column in CURVE[:4])
        return [" ".join(str(name) for name in words if name not in ("auto", None))]
    firsts = [curve[0] for curve in curves]
    chosen = find_varied(firsts, CURVE)
    return [" ".join(filter(None, (format_column(row, column) for column in chosen))) for row in firsts]


def format_column(row: Row, column: str) -> str:
    """Format a column for a label: a name as it is, a number or an option as `name=value`."""
    value = row.get(column)
    if column.endswith("_options"):
        options = read_options(row, column.removesuffix("_options"))
        return " ".join(f"{name}={option}" for name, option in options.items())
    if column in _NAMES:
        return str(value)
    return f"{column}={value}"


def read_options(row: Row, group: str) -> dict[str, Any]:
    """Return the options of the choice in a group, by name."""
    found: dict[str, Any] = json.loads(row.get(f"{group}_options") or "{}")
    return found
