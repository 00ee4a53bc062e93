"""What this host knows without MLflow: whether a process lives, what can be a store, and what a store has."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil

from kvexp.errors import KvexpError

_BUSY_SECONDS = 5.0


def check_database(file: Path) -> None:
    """Returns when the file is missing or a database: MLflow retries anything else for minutes, silently.

    Raises:
        KvexpError: It is no file, or cannot be read and written.
        sqlite3.Error: It is no database.
    """
    if not file.exists():
        return
    if not file.is_file():
        raise KvexpError(f"{file} is a folder")
    if not os.access(file, os.R_OK | os.W_OK):
        raise KvexpError(f"{file} cannot be read and written")
    with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS)) as database:
        database.execute("select count(*) from sqlite_master")
        # What a process that wrote would wait for: a lock of another one, or a file system that is read-only.
        database.execute("begin immediate")


def experiments(file: Path, tag: str) -> dict[str, str]:
    """The ids of the store's experiments that have the tag, by name.

    Raises:
        sqlite3.Error: The file is no store.
    """
    query = "select name, experiment_id from experiments join experiment_tags using (experiment_id)"
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute(f"{query} where key = ? and lifecycle_stage = 'active'", (tag,))
        return {str(name): str(number) for name, number in found}


def started(pid: int) -> str:
    """When the process was started, in seconds since 1970; empty when there is none that lives."""
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return "" if ended else f"{process.create_time():.0f}"
    except psutil.Error:
        return ""


def alive(pid: int, since: str | None) -> bool:
    """Whether the process lives on; another one that was given its number later is not it."""
    now = started(pid)
    if not now or not since:
        return bool(now)
    # A clock that is set moves both ends of psutil's sum, hence the second.
    return abs(float(now) - float(since)) <= 1
