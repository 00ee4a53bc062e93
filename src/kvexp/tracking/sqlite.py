"""Check a store's sqlite file, read its experiments, and tell whether a process lives, all without MLflow."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil

from kvexp.errors import KvexpError

_BUSY_SECONDS = 5.0


def check_database(file: Path) -> None:
    """Check that the file is missing or a database: MLflow silently retries anything else for minutes.

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
        # Fails as a write would: another process holds the lock, or the file system is read-only.
        database.execute("begin immediate")


def find_experiments(file: Path, tag: str) -> dict[str, str]:
    """Return the ids of the store's experiments that have the tag, by name.

    Raises:
        sqlite3.Error: The file is no store.
    """
    query = "select name, experiment_id from experiments join experiment_tags using (experiment_id)"
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute(f"{query} where key = ? and lifecycle_stage = 'active'", (tag,))
        return {str(name): str(number) for name, number in found}


def read_start_time(pid: int) -> str:
    """Return when the process was started, in seconds since 1970; empty if it does not live."""
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return "" if ended else f"{process.create_time():.0f}"
    except psutil.Error:
        return ""


def is_alive(pid: int, since: str | None) -> bool:
    """Return whether the process that was started then lives; a later one may have its number."""
    now = read_start_time(pid)
    if not now or not since:
        return bool(now)
    # psutil adds to the boot time, which moves when the clock is set: allow a second.
    return abs(float(now) - float(since)) <= 1
