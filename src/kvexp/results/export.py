"""Export rows as a table with a line for each point: a pandas DataFrame, CSV, parquet or JSON.

The columns are `sweep`, `command`, and those of a row, which end with their units. Each option, which a row
holds as JSON, is a column too: `impl_num_warps`.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvexp.measurement import Row
from kvexp.results.labels import OPTIONS, read_options
from kvexp.results.load import COMMAND, SWEEP, read

if TYPE_CHECKING:
    import pandas

FORMATS = ("csv", "parquet", "json")
_NUMBERS = ("_us", "_fraction", "_per_s")  # endings of columns that hold numbers, if anything
_WHOLE: Literal["Int64"] = "Int64"  # pandas' integers that may be missing; a float would round 2**53 + 1


def load(*sweeps: str | Path, multirun: str | Path = "multirun") -> "pandas.DataFrame":
    """Load the points of finished sweeps into a DataFrame, one row each.

    Args:
        *sweeps: Sweeps' folders, jobs' folders, `rows.jsonl` files, or folders of sweeps; without any the
            last sweep below `multirun`.
        multirun: Where the last sweep is looked for.

    Returns:
        A DataFrame with the columns that this module's docstring names. What does not apply is missing: a
        point that is not `ok` has no latency.

    Raises:
        ConfigError: A path is missing or holds no rows.
    """
    return make_frame(read([Path(sweep) for sweep in sweeps], Path(multirun)))


def make_frame(rows: Sequence[Row]) -> "pandas.DataFrame":
    """Make a DataFrame of the rows; whole numbers stay whole where some are missing."""
    import pandas  # here, since `kvexp.load` should cost nothing until it is called

    first = (SWEEP, COMMAND)
    flat = [{**{column: row[column] for column in first}, **row, **_expand_options(row)} for row in rows]
    frame = pandas.DataFrame(flat)
    for column in frame.columns:
        values: list[Any] = [row.get(column) for row in flat]
        held = [value for value in values if value is not None]
        if not held and column.endswith(_NUMBERS):
            frame[column] = pandas.array(values, dtype="float64")
        elif held and all(isinstance(value, int) and not isinstance(value, bool) for value in held):
            frame[column] = pandas.array(values, dtype=_WHOLE)
        elif len({float if type(value) is int else type(value) for value in held}) > 1:
            # An option may be a number in one row and a word in another; parquet needs one type.
            texts = [None if value is None else str(value) for value in values]
            frame[column] = pandas.array(texts, dtype="string")
    return frame


def encode(rows: Sequence[Row], kind: str) -> bytes:
    """Encode the rows in one of FORMATS: CSV with a header, a JSON array, or parquet."""
    frame = make_frame(rows)
    if kind == "csv":
        return frame.to_csv(index=False).encode()
    if kind == "json":
        text: str = frame.to_json(orient="records", indent=1, force_ascii=False, double_precision=15)
        return text.encode() + b"\n"
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _expand_options(row: Row) -> dict[str, Any]:
    options = ((group, read_options(row, group)) for group in OPTIONS)
    found = {f"{group}_{name}": value for group, own in options for name, value in own.items()}
    return {column: value for column, value in found.items() if column not in row}
