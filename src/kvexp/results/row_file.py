"""Write, read and check files of rows, from which every other output is derived.

A job's folder holds `rows.jsonl`, one row a line as `Measurement.row` gives it, and `samples.jsonl`, the raw
samples of each latency. Lines are only appended. A sweep's folder holds its jobs' folders, and multirun/ the
sweeps'.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from kvexp.case import Case
from kvexp.errors import KvexpError
from kvexp.measurement import SCHEMA, STATUSES, Row, Statistics
from kvexp.results import jsonl
from kvexp.results.point_identity import REPETITION

ROWS = "rows.jsonl"
SAMPLES = "samples.jsonl"

OPTIONS = ("impl_options", "timer_options")
"""The columns that hold a JSON object, as text."""
_POSITIVE = ("latency_us", "latency_us_high", "latency_us_p80", "copy_us", "empty_kernel_us")
"""Columns that are divisors or drawn on a logarithmic axis; an `ok` row always has the first."""

_TIME = "2026-11-21T10:00:00+00:00"

_log = logging.getLogger(__name__)


def make_folder(folder: Path) -> None:
    """Make the folder, and check that files can be made in it.

    Raises:
        KvexpError: It cannot be made, or nothing can be made in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
        why = f"{existing} is a file" if not existing.is_dir() else f"{existing.absolute()}: {error.strerror}"
        raise KvexpError(f"cannot make the folder {folder}: {why}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise KvexpError(f"the folder {folder} cannot be written to")


class RowFile:
    """Append the rows of one job to its files, one whole line at a time.

    Args:
        folder: The job's folder; made when it is missing.
        on_torn: Called with one sentence when a last line that its writer could not finish is cut off.
    """

    def __init__(self, folder: Path, on_torn: Callable[[str], None] = _log.warning) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SAMPLES, ROWS):
            jsonl.mend(folder / name, on_torn)

    def append(self, row: Row, samples_us: Sequence[float] = ()) -> None:
        """Write the samples, then the row, to the disk: no row can be without its samples.

        Raises:
            ValueError: A number is NaN or infinite; nothing is written then.
            OSError: The row cannot be written; those before it are whole.
        """
        line = json.dumps(dict(row), allow_nan=False)
        if samples_us:
            samples = {"num_tokens": row["num_tokens"], "samples_us": list(samples_us)}
            jsonl.append(self.folder / SAMPLES, json.dumps(samples, allow_nan=False))
        jsonl.append(self.folder / ROWS, line)


def read(path: Path, on_torn: Callable[[str], None] = _log.warning) -> list[dict[str, Any]]:
    """Read the rows of one file, or of every `rows.jsonl` below a folder, jobs in numeric order.

    Args:
        path: A file of rows or a folder. A folder without any gives no rows.
        on_torn: Called with one sentence for a last line that its writer could not finish.

    Raises:
        KvexpError: The path is missing, or a line is not a row of this schema.
    """
    if path.is_dir():
        files = sorted(path.rglob(ROWS), key=lambda file: sort_key(file.relative_to(path)))
    elif path.exists():
        files = [path]
    else:
        raise KvexpError(f"{path} does not exist; give a {ROWS} file or a folder that holds some")
    return [_check_row(file, number, row) for file in files for number, row in jsonl.read(file, on_torn)]


def sort_key(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sort key under which job 10 comes after job 9."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts]


def _check_row(file: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """Return the object after checking that it is a row of this schema.

    Raises:
        KvexpError: It is not one, or a column has a value that no row can have.
    """
    where = f"{file}, line {number}"
    if row.get("schema") != SCHEMA:
        raise KvexpError(f"{where}: schema {row.get('schema')!r}, but this kvexp reads schema {SCHEMA}")
    if row.get("status") not in STATUSES:
        raise KvexpError(f"{where}: status {row.get('status')!r:.80} is none of {', '.join(STATUSES)}")
    if "num_tokens" not in row:
        raise KvexpError(f"{where}: a row names its num_tokens, and this one does not")
    for column, value in row.items():
        kind = _KINDS.get(column)
        if kind and (not isinstance(value, kind) or isinstance(value, bool)):
            raise KvexpError(f"{where}: {column} cannot be {value!r:.80}")
        if isinstance(value, dict | list):
            raise KvexpError(f"{where}: {column} must be one value, not {value!r:.80}")
        if column == "started_at" and value and not _is_time(value):
            raise KvexpError(f"{where}: started_at must be a time such as {_TIME}, not {value!r:.80}")
        if column in OPTIONS and value and not _are_options(value):
            raise KvexpError(f"{where}: {column} must be a JSON object, not {value!r:.80}")
    if row["status"] == "ok":
        for column in _POSITIVE:
            value = row.get(column)
            if value is None and column != "latency_us":
                continue
            if value is None or value <= 0:
                raise KvexpError(f"{where}: {column} of an ok row cannot be {value!r:.80}")
    return row


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return False
    return True


def _are_options(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _get_kinds() -> dict[str, Any]:
    """Return the type of each column that is computed with or looked up by; a measured number may be None."""
    case = {column.name: column.type for column in fields(Case)}
    numbers = {column.name: int | float | None for column in fields(Statistics)}
    others = ("gb_per_s", "host_us", "copy_us", "copy_fraction", "empty_kernel_us")
    real = {name: int | float for name, kind in case.items() if kind is float}
    texts = {"reason": str, "started_at": str}
    return case | real | numbers | dict.fromkeys(others, int | float | None) | texts | {REPETITION: int}


_KINDS = _get_kinds()
