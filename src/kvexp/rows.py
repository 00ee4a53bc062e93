"""Rows on disk: append-only JSON lines, the truth that every other output is a view of.

A job's folder holds `rows.jsonl`, one row a line as `Measurement.row` gives it, and
`samples.jsonl`, the raw samples behind each latency. A sweep's folder holds its jobs' folders;
multirun/ holds the sweeps'.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kvexp.case import Case
from kvexp.errors import KvexpError
from kvexp.measurement import SCHEMA

Row = Mapping[str, Any]

ROWS = "rows.jsonl"
SAMPLES = "samples.jsonl"

_NAMES = ("impl", "layout", "dtype", "kv_cache_dtype", "scale", "device", "mode", "workload", "op")
_OTHERS = [name for name in Case.__dataclass_fields__ if name not in (*_NAMES, "num_tokens", "layout_reason")]
CURVE = (*_NAMES, *sorted(_OTHERS, key=lambda name: name.endswith("_options")))
"""The columns of a case that are fixed along a curve, those that people vary most first."""

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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SAMPLES, ROWS):
            _mend(folder / name)

    def append(self, row: Row, samples_us: Sequence[float] = ()) -> None:
        """The row is on the disk, its samples before it: a row without its samples cannot exist.

        Raises:
            ValueError: A number is NaN or infinite; nothing is written then.
        """
        line = json.dumps(dict(row), allow_nan=False)
        if samples_us:
            samples = {"num_tokens": row["num_tokens"], "samples_us": list(samples_us)}
            _write_line(self.folder / SAMPLES, json.dumps(samples, allow_nan=False))
        _write_line(self.folder / ROWS, line)


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
    return [row for file in files for row in _read_file(file, on_torn)]


def last_sweep(root: Path) -> Path | None:
    """The newest sweep's folder that has rows, where `root` is multirun/."""
    # <date>/<time with microseconds>: names sort by age.
    sweeps = (folder for folder in sorted(root.glob("*/*"), reverse=True) if folder.is_dir())
    return next((folder for folder in sweeps if next(folder.rglob(ROWS), None)), None)


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


def word(row: Row, column: str) -> str:
    """A column as a word in a label: names as they are, numbers and options behind their own."""
    value = row.get(column)
    if column.endswith("_options"):
        options: dict[str, Any] = json.loads(value) if value else {}
        return " ".join(f"{name}={option}" for name, option in options.items())
    if column in _NAMES:
        return str(value)
    return f"{column}={value}"


def _write_line(file: Path, line: str) -> None:
    with file.open("ab") as handle:
        handle.write(line.encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


def _mend(file: Path) -> None:
    """The file ends with a newline: a line that a killed writer left unfinished is cut off.

    Without this the next row would be glued to the torn one, and both would be lost.
    """
    if not file.exists():
        return
    with file.open("r+b") as handle:
        content = handle.read()
        tail = content[content.rfind(b"\n") + 1 :]
        if not tail:
            return
        if _is_object(tail):
            handle.write(b"\n")
        else:
            handle.truncate(len(content) - len(tail))


def _read_file(file: Path, on_torn: Callable[[str], None]) -> list[dict[str, Any]]:
    # Split on the newline byte alone: str.splitlines would also break at U+2028 inside a string.
    lines = file.read_bytes().split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = _loads(line)
        except ValueError as error:
            if number == len(lines):
                on_torn(f"{file}, line {number}: the last line is not whole and was left out")
                break
            raise KvexpError(f"{file}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise KvexpError(f"{file}, line {number}: a row is a JSON object, not {line[:40]!r}")
        if row.get("schema") != SCHEMA:
            raise KvexpError(
                f"{file}, line {number}: schema {row.get('schema')!r}, but this kvexp reads schema {SCHEMA}"
            )
        rows.append(row)
    return rows


def _loads(line: bytes) -> Any:
    """The value of one line of strict JSON; ValueError for anything else, NaN included."""
    return json.loads(line.decode(), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(_loads(line), dict)
    except ValueError:
        return False


def _numeric(path: Path) -> list[tuple[bool, int, str]]:
    """A sort key under which job 10 comes after job 9."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts]
