"""A sweep's folder: who is at work in it, which command line made it, and what it holds already.

`command.json` holds the overrides and flags as they were typed. It is read as texts, which the command line
then checks as if they had been typed; whatever could name a file of code is not taken from it.
"""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kvexp import jsonl, locks
from kvexp.errors import ConfigError, KvexpError
from kvexp.rows import RIGHT, ROWS, Identity, identity, read

COMMAND = "command.json"
LOCK = ".lock"
_LONGEST_COMMAND = 1 << 20


def hold(folder: Path) -> AbstractContextManager[None]:
    """No other kvexp process of this host works in the folder meanwhile.

    Raises:
        TimeoutError: One does; the message names it.
    """
    return locks.locked(folder / LOCK)


def write_command(folder: Path, overrides: Sequence[str], flags: Sequence[str]) -> None:
    """The folder knows what was typed; what an earlier start of the same sweep wrote stays.

    Raises:
        ConfigError: It cannot be written.
    """
    if (folder / COMMAND).exists():
        return
    try:
        jsonl.append(folder / COMMAND, json.dumps({"overrides": list(overrides), "flags": list(flags)}))
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
        with file.open("rb") as handle:
            content: Any = jsonl.loads(handle.read(_LONGEST_COMMAND))
        found = [content["overrides"], content["flags"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} does not say what was typed; type the whole command again, with resume={folder}"
        ) from error
    for texts in found:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{file} is no command line; type the whole command, with resume={folder}")
    return found[0], found[1]


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun in the folder."""
    return (folder / COMMAND).is_file() or any(folder.glob(f"*/{ROWS}"))


def last(root: Path) -> Path | None:
    """The newest sweep's folder, where `root` is multirun/; it may have no rows yet."""
    # <date>/<time with microseconds>: names sort by age.
    folders = (folder for folder in sorted(root.glob("*/*"), reverse=True) if folder.is_dir())
    return next((folder for folder in folders if is_sweep(folder)), None)


def done(folder: Path) -> dict[Identity, dict[str, Any]]:
    """The newest right row of each point that has one.

    Raises:
        KvexpError: The folder holds a file that is not one of rows.
    """
    return {identity(row): row for row in read(folder) if row["status"] in RIGHT}


def next_number(folder: Path) -> int:
    """The number of the next curve's folder: above every one that is there, with or without rows."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise KvexpError(f"{folder} cannot be listed ({error.strerror})") from error
    return max((int(name) for name in names if name.isascii() and name.isdecimal()), default=-1) + 1
