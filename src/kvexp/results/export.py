"""Rows to tables for other tools: a pandas DataFrame, CSV, parquet or JSON, one line for each point.

The columns are those of a row, their units in their names, and before them `sweep` and `command`, which a row
on disk does not need. Options, which a row holds as JSON, are columns too: `impl_num_warps`.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvexp.results import load as results

if TYPE_CHECKING:
    import pandas

FORMATS = ("csv", "parquet", "json")
_OPTIONS = ("impl", "timer")
_NUMBERS = ("_us", "_fraction", "_per_s")  # endings of columns that hold numbers, if anything
_WHOLE: Literal["Int64"] = (
    "Int64"  # pandas' integers that may be missing: as a float, 2**53 + 1 bytes would be others
)


def load(*sweeps: str | Path, multirun: str | Path = "multirun") -> "pandas.DataFrame":
    """The points of finished sweeps as a DataFrame, one row each.

    Args:
        *sweeps: Sweeps' folders, jobs' folders, `rows.jsonl` files, or folders of sweeps; without any the
            last sweep below `multirun`.
        multirun: Where the last sweep is looked for.

    Returns:
        The columns of a row and those of this module's docstring. What does not apply is missing: a point
        that is not `ok` has no latency.

    Raises:
        ConfigError: A path is missing or holds no rows.
    """
    return frame(results.read([Path(sweep) for sweep in sweeps], Path(multirun)))


def frame(rows: Sequence[results.Row]) -> "pandas.DataFrame":
    """The rows as a DataFrame; whole numbers stay whole where some are missing."""
    import pandas  # here, since `kvexp.load` should cost nothing until it is called

    first = (results.SWEEP, results.COMMAND)
    flat = [{**{column: row[column] for column in first}, **row, **_options(row)} for row in rows]
    made = pandas.DataFrame(flat)
    for column in made.columns:
        values: list[Any] = [row.get(column) for row in flat]
        held = [value for value in values if value is not None]
        if not held and column.endswith(_NUMBERS):
            made[column] = pandas.array(values, dtype="float64")
        elif held and all(isinstance(value, int) and not isinstance(value, bool) for value in held):
            made[column] = pandas.array(values, dtype=_WHOLE)
        elif len({float if type(value) is int else type(value) for value in held}) > 1:
            # One option may be a number here and a word there; parquet wants one type.
            made[column] = pandas.array([_text(value) for value in values], dtype="string")
    return made


def content(rows: Sequence[results.Row], kind: str) -> bytes:
    """The rows as a file of that kind, one of FORMATS: CSV with a header, a JSON array, or parquet."""
    made = frame(rows)
    if kind == "csv":
        return made.to_csv(index=False).encode()
    if kind == "json":
        text: str = made.to_json(orient="records", indent=1, force_ascii=False, double_precision=15)
        return text.encode() + b"\n"
    buffer = io.BytesIO()
    made.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _options(row: results.Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in _OPTIONS:
        options: dict[str, Any] = json.loads(row.get(f"{group}_options") or "{}")
        found |= {f"{group}_{name}": value for name, value in options.items()}
    return {column: value for column, value in found.items() if column not in row}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
