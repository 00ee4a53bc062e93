"""A sweep's folder: who is at work in it, which command line made it and when, and what it holds already.

`command.json` holds the overrides and flags as they were typed, when the sweep began, and the id by which a
store knows it, whatever other folders have the same name. What was typed is read as texts, which the command
line then checks as if they had been typed; whatever could name a file of code is not taken from it.
"""

import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvexp import file_lock
from kvexp.errors import ConfigError, KvexpError
from kvexp.results import jsonl
from kvexp.results.rows import RIGHT, ROWS, Identity, Row, newest, point, read, repetition

COMMAND = "command.json"
LOCK = ".lock"
_LONGEST_COMMAND = 1 << 20
_NAME = "%Y-%m-%d/%H-%M-%S-%f"  # of a sweep that was given none, in local time


_mine: set[Path] = set()


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """No other kvexp process of this host works in the folder meanwhile; this one may hold it already.

    Raises:
        TimeoutError: One does; the message names it.
        OSError: The folder cannot be locked.
    """
    file = Path(os.path.realpath(folder)) / LOCK
    if file in _mine:
        yield
        return
    with file_lock.locked(file):
        _mine.add(file)
        try:
            yield
        finally:
            _mine.discard(file)


@contextmanager
def sweeping(folder: Path) -> Iterator[None]:
    """The folder is held for a sweep.

    Raises:
        ConfigError: Another process works there, or the folder cannot be locked.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder))
        except TimeoutError as error:
            raise ConfigError(f"another sweep is at work there: {error}") from error
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be locked ({error.strerror}); nothing was measured"
            ) from error
        yield


def write_command(folder: Path, overrides: Sequence[str], flags: Sequence[str]) -> None:
    """The folder knows what was typed, when, and by which id; what an earlier start of the sweep wrote stays.

    One that was begun without an id gets none: a store may know it by its name.

    Raises:
        ConfigError: It cannot be written.
    """
    if (folder / COMMAND).exists():
        return
    now = datetime.now(UTC).isoformat()
    typed = {"overrides": list(overrides), "flags": list(flags), "started_at": now}
    if not is_sweep(folder):
        typed["id"] = uuid.uuid4().hex
    try:
        jsonl.append(folder / COMMAND, json.dumps(typed))
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder / COMMAND} ({error.strerror}); nothing was measured"
        ) from error


def read_command(folder: Path) -> tuple[list[str], list[str]]:
    """The overrides and the flags that the folder's sweep was typed with.

    Raises:
        ConfigError: The file is missing or not what `write_command` writes.
    """
    file = folder / COMMAND
    try:
        content = _content(file)
        found = [content["overrides"], content["flags"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} does not say what was typed; type the whole command again, with resume={folder}"
        ) from error
    for texts in found:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{file} is no command line; type the whole command, with resume={folder}")
    return found[0], found[1]


def name_of(folder: Path) -> str:
    """A sweep's name: the last two of its folder's, date and time."""
    return "/".join(folder.parts[-2:])


def id_of(folder: Path) -> str:
    """What no other sweep has: the id that it began with, or, of one that began without, its name."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = _content(folder / COMMAND)["id"]
        if is_id(found):
            return str(found)
    return name_of(folder)


def is_id(text: str) -> bool:
    """Whether it is an id that a sweep began with, and no name."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def mask_passwords(typed: str) -> str:
    """What was typed, an address, or a file's text, with the password of every address masked."""
    return re.sub(r"(?<=://)([^/@:\n]*):[^/\n]*@", r"\1:***@", typed)


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun in the folder."""
    return (folder / COMMAND).is_file() or any(folder.glob(f"*/{ROWS}"))


def last(root: Path, *, with_rows: bool = False) -> Path | None:
    """The folder of the sweep that began last, whether it was given a name or has date and time for one.

    Args:
        root: multirun/; sweeps are looked for in it and in its folders.
        with_rows: Sweeps that have no rows yet are passed over.
    """
    folders = filter(is_sweep, (*root.glob("*"), *root.glob("*/*")))
    sweeps = sorted(folders, key=lambda folder: (_begun(folder), folder), reverse=True)
    return next((folder for folder in sweeps if not with_rows or any(folder.rglob(ROWS))), None)


def _begun(folder: Path) -> float:
    """When the sweep began, in seconds since 1970: by its record, else its name, else the file system."""
    record = folder / COMMAND
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        return datetime.fromisoformat(_content(record)["started_at"]).timestamp()
    with suppress(ValueError, OverflowError):
        return datetime.strptime("/".join(folder.parts[-2:]), _NAME).timestamp()
    return (record if record.is_file() else folder).stat().st_mtime


def _content(file: Path) -> Any:
    with file.open("rb") as handle:
        return jsonl.loads(handle.read(_LONGEST_COMMAND))


def done(folder: Path) -> dict[int, dict[Identity, Row]]:
    """The row of each point whose last try was right, by repetition.

    Raises:
        KvexpError: The folder holds a file that is not one of rows.
    """
    found: dict[int, dict[Identity, Row]] = {}
    for row in newest(read(folder)):
        if row["status"] in RIGHT:
            found.setdefault(repetition(row), {})[point(row)] = row
    return found


def next_number(folder: Path) -> int:
    """The number of the next curve's folder: above every one that is there, with or without rows."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise KvexpError(f"{folder} cannot be listed ({error.strerror})") from error
    return max((int(name) for name in names if name.isascii() and name.isdecimal()), default=-1) + 1
