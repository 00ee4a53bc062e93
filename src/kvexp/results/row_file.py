"""Write, read and check files of rows, from which every other output is derived.

A job's folder holds `rows.jsonl`, one row a line as `Measurement.row` gives it, and `samples.jsonl`, the raw
samples of each latency. Lines are only appended. A sweep's folder holds its jobs' folders, and multirun/ the
sweeps'.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvexp.column import ANY, Column, Options, Positive
from kvexp.errors import ConfigError, KvexpError
from kvexp.host.plain_file import open_plain
from kvexp.measurement import COLUMNS, SCHEMA, STATUSES, Row
from kvexp.results import jsonl
from kvexp.results.conf_files import complete_columns

ROWS = "rows.jsonl"
SAMPLES = "samples.jsonl"
TRACEBACKS = "tracebacks.txt"
"""Tracebacks of a job's failed points, for whoever wrote the implementation."""

_POSITIVE = tuple(column for column, declared in COLUMNS.items() if isinstance(declared, Positive))

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

    The job's folder is made when it is missing; the sweep's is there. `on_torn` is called with one sentence
    when a last line that its writer could not finish is cut off.
    """

    def __init__(self, folder: Path, on_torn: Callable[[str], None] = _log.warning) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
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

    def append_traceback(self, num_tokens: int, traceback: str) -> None:
        """Append the traceback of one point to its file; raise OSError where it cannot be written."""
        file = self.folder / TRACEBACKS
        with open(file, "a", encoding="utf-8", errors="replace", opener=open_plain) as opened:
            opened.write(f"num_tokens {num_tokens}\n{traceback}\n")


def read(path: Path, on_torn: Callable[[str], None] = _log.warning) -> list[dict[str, Any]]:
    """Read the rows of one file, or of every `rows.jsonl` below a folder, jobs in numeric order.

    `on_torn` is called with one sentence for a last line that its writer could not finish.

    Raises:
        ConfigError: The path is missing, or a line is not a row of this schema.
    """
    if path.is_dir():
        files = sorted(path.rglob(ROWS), key=lambda file: sort_key(file.relative_to(path)))
    elif path.exists():
        files = [path]
    else:
        raise ConfigError(f"{path} does not exist; give a {ROWS} file or a folder that holds some")
    return [check_row(f"{file}, line {at}", row) for file in files for at, row in jsonl.read(file, on_torn)]


def sort_key(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sort key under which job 10 comes after job 9."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts]


def check_row(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Check that the object is a row of this schema, and each column by its declaration; return the row.

    What it lacks since it is older is filled in; see `complete_columns`.

    Raises:
        ConfigError: It is not one, or a column has a value that no row can have. The sentence begins with
            `where`.
    """
    if row.get("schema") != SCHEMA:
        raise ConfigError(f"{where}: schema {row.get('schema')!r}, but this kvexp reads schema {SCHEMA}")
    if row.get("status") not in STATUSES:
        raise ConfigError(f"{where}: status {row.get('status')!r:.80} is none of {', '.join(STATUSES)}")
    for column in ("num_tokens",) if row["status"] == "ok" else ("num_tokens", "reason"):
        if column not in row:
            raise ConfigError(f"{where}: a row names its {column}, and this one does not")
    if row["status"] == "ok":
        for column in _POSITIVE:
            value = row.get(column)
            is_low = isinstance(value, int | float) and value <= 0
            if is_low or (value is None and column == "latency_us"):
                raise ConfigError(f"{where}: {column} of an ok row cannot be {value!r:.80}")
    _check_columns(where, row, COLUMNS)
    return complete_columns(row)


def _check_columns(where: str, columns: Mapping[str, Any], known: Mapping[str, Column]) -> None:
    """Check the columns by their declarations; those that are not known hold any one value."""
    for column, value in columns.items():
        declared = known.get(column, ANY)
        if declared is ANY and ANY.find_fault(column):
            raise ConfigError(f"{where}: no column is called {column!r:.80}")
        if isinstance(value, dict | list):
            raise ConfigError(f"{where}: {column} must be one value, not {value!r:.80}")
        if fault := declared.find_fault(value):
            raise ConfigError(f"{where}: {column} cannot be {value!r:.80}; it must be {fault}")
        if isinstance(declared, Options) and value:
            options: object = None
            with suppress(ValueError):
                options = jsonl.loads(value.encode())
            if not isinstance(options, dict):
                raise ConfigError(f"{where}: {column} must be a JSON object, not {value!r:.80}")
            _check_columns(f"{where}: {column}", options, {})
