"""Rows on disk: append-only JSON lines, the truth that every other output is a view of.

A job's folder holds `rows.jsonl`, one row a line as `Measurement.row` gives it, and
`samples.jsonl`, the raw samples behind each latency. A sweep's folder holds its jobs' folders;
multirun/ holds the sweeps'.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kvexp.case import Case
from kvexp.errors import KvexpError
from kvexp.experiment import MEANING
from kvexp.measurement import SCHEMA, STATUSES, Statistics
from kvexp.results import jsonl

Row = Mapping[str, Any]

ROWS = "rows.jsonl"
SAMPLES = "samples.jsonl"

_NAMES = ("impl", "layout", "dtype", "kv_cache_dtype", "scale", "device", "mode", "workload", "op")
_OTHERS = [name for name in Case.__dataclass_fields__ if name not in (*_NAMES, "num_tokens", "layout_reason")]
CURVE = (*_NAMES, *sorted(_OTHERS, key=lambda name: name.endswith("_options")))
"""The columns of a case that are fixed along a curve, those that people vary most first."""

IDENTITY = (
    *(column.name for column in fields(Case) if column.compare),
    *("impl_hash", "device_name", "device_uuid", "driver", "torch", "triton"),
)
"""The columns that say which point a row is of: what was measured, and what can change its outcome."""
Identity = tuple[Any, ...]
_TRIED = ("workload", *(column for column in IDENTITY if column != "impl_hash"))
_TYPED = ("workload", *(column.name for column in fields(Case) if column.compare))
REPETITION = "repetition"
"""The column that counts the processes which measured one point, from 1 on; it changes no outcome."""
OPTIONS = ("impl_options", "timer_options")
"""The columns that hold a JSON object, as text."""
_POSITIVE = ("latency_us", "latency_us_high", "latency_us_p80", "copy_us", "empty_kernel_us")
"""What others divide by or draw on a logarithmic axis; of an `ok` row the first is always there."""

_log = logging.getLogger(__name__)


def make_folder(folder: Path) -> None:
    """The folder is there, and files can be made in it.

    Raises:
        KvexpError: It cannot be made, or nothing can be made in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
        why = f"{there} is a file" if not there.is_dir() else f"{there.absolute()}: {error.strerror}"
        raise KvexpError(f"cannot make the folder {folder}: {why}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise KvexpError(f"the folder {folder} cannot be written to")


class RowFile:
    """The rows of one job, written one whole line at a time.

    Args:
        folder: The job's folder; made when it is missing.
        on_torn: Told, in one sentence, of a last line that was cut off since its writer could not finish it.
    """

    def __init__(self, folder: Path, on_torn: Callable[[str], None] = _log.warning) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SAMPLES, ROWS):
            jsonl.mend(folder / name, on_torn)

    def append(self, row: Row, samples_us: Sequence[float] = ()) -> None:
        """The row is on the disk, its samples before it: a row without its samples cannot exist.

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
    """The rows of one file, or of every `rows.jsonl` below a folder, jobs in numeric order.

    Args:
        path: A file of rows or a folder. A folder without any gives no rows.
        on_torn: Told, in one sentence, of a last line that its writer could not finish.

    Raises:
        KvexpError: The path is missing, or a line is not a row of this schema.
    """
    if path.is_dir():
        files = sorted(path.rglob(ROWS), key=lambda file: _numeric(file.relative_to(path)))
    elif path.exists():
        files = [path]
    else:
        raise KvexpError(f"{path} does not exist; give a {ROWS} file or a folder that holds some")
    return [_row(file, number, row) for file in files for number, row in jsonl.read(file, on_torn)]


def identity(row: Row) -> Identity:
    """Which point a row is of: equal for two rows when nothing that can change their outcome differs."""
    return tuple(row.get(column) for column in IDENTITY)


def point(row: Row) -> Identity:
    """Which point of which workload a row is of: what is right there is not measured again in its sweep."""
    return (row.get("workload"), *identity(row))


def tried(row: Row) -> Identity:
    """Which point of which workload a row is a try of, whatever became of the kernel meanwhile."""
    return tuple(row.get(column) for column in _TRIED)


def newest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each point and repetition, the last of several tries; in the order of the first tries.

    A kernel that was changed between two tries leaves one row, that of its last state. Points that differ in
    their workload's name alone are two. A row that names no device (its process ended before it had one) is
    left out where its point has another.
    """
    found = list({(repetition(row), *tried(row)): row for row in rows}.values())
    named: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        if row.get("device_name") is not None:
            named.setdefault(_typed(row), []).append(row)
    return [
        row
        for row in found
        if row.get("device_name") is not None
        or not any(_became(row, other) for other in named.get(_typed(row), ()))
    ]


def repetition(row: Row) -> int:
    """Which of the processes that measured its point the row comes from; one alone is the first."""
    return int(row.get(REPETITION) or 1)


def _typed(row: Row) -> tuple[Any, ...]:
    """What the point was to be, without what a machine resolves."""
    return (repetition(row), *(row.get(column) for column in _TYPED if column not in MEANING["cpu"]))


def _became(nameless: Row, other: Row) -> bool:
    """Whether what the one says, which may be `auto`, is what the other says; `auto` alone is a GPU's."""
    meant = MEANING["cpu" if nameless.get("device") == "cpu" else "cuda"]
    return all(
        other.get(column) == (meaning if nameless.get(column) in ("auto", "cuda") else nameless.get(column))
        for column, meaning in meant.items()
    )


def curves(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows apart by curve: alike in every column of the case but `num_tokens`."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(column) for column in CURVE), []).append(row)
    return list(found.values())


def labels(curves: Sequence[Sequence[Row]]) -> list[str]:
    """A short name for each curve: what tells these apart, or of a single one its main choices.

    A column that says no more than those before it (the sizes of a named workload) is left out.
    """
    if len(curves) == 1:
        words = (curves[0][0].get(column) for column in CURVE[:4])
        return [" ".join(str(name) for name in words if name not in ("auto", None))]
    firsts = [curve[0] for curve in curves]
    chosen: list[str] = []
    told_apart = 1
    for column in CURVE:
        kinds = len({tuple(row.get(name) for name in (*chosen, column)) for row in firsts})
        if kinds > told_apart:
            chosen.append(column)
            told_apart = kinds
    return [" ".join(filter(None, (word(row, column) for column in chosen))) for row in firsts]


def disturbed(rows: Iterable[Row]) -> dict[str, Any]:
    """`throttled`, with all that held clocks down at any row, and the most `other_processes`, if any."""
    found = list(rows)
    held = [word for row in found for word in (row.get("throttled") or "").split(", ") if word]
    others = max((row.get("other_processes") or 0 for row in found), default=0)
    said = {"throttled": ", ".join(dict.fromkeys(held)), "other_processes": others}
    return {column: value for column, value in said.items() if value}


def word(row: Row, column: str) -> str:
    """A column as a word in a label: names as they are, numbers and options behind their own."""
    value = row.get(column)
    if column.endswith("_options"):
        options: dict[str, Any] = json.loads(value) if value else {}
        return " ".join(f"{name}={option}" for name, option in options.items())
    if column in _NAMES:
        return str(value)
    return f"{column}={value}"


def _row(file: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """The object, which is a row of this schema.

    Raises:
        KvexpError: It is none, or a column has a value that no row can have.
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


def _are_options(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _kinds() -> dict[str, Any]:
    """The type of each column that others compute with or look up by; a measured number may be missing."""
    case = {column.name: column.type for column in fields(Case)}
    numbers = {column.name: int | float | None for column in fields(Statistics)}
    others = ("gb_per_s", "host_us", "copy_us", "copy_fraction", "empty_kernel_us")
    real = {name: int | float for name, kind in case.items() if kind is float}
    texts = {"reason": str, "started_at": str}
    return case | real | numbers | dict.fromkeys(others, int | float | None) | texts | {REPETITION: int}


_KINDS = _kinds()


def _numeric(path: Path) -> list[tuple[bool, int, str]]:
    """A sort key under which job 10 comes after job 9."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts]
