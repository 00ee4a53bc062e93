"""Address and check a store's sqlite file, and tell whether a process lives, all without MLflow."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

import psutil

from kvexp.errors import KvexpError
from kvexp.tracking import sqlite_file

_BUSY_SECONDS = 5.0


def format_for_sqlalchemy(uri: str) -> str:
    """Return the address with which SQLAlchemy opens that very sqlite file, and any other as it is.

    SQLAlchemy decodes a % in the path from 2.1 on. MLflow makes the folder of the path as it is written, so
    here the path has no / either.
    """
    from sqlalchemy.engine import make_url  # here, since few commands need it

    file = sqlite_file(uri)
    if file is None or make_url(uri).database == str(file):
        return uri
    return uri.replace(str(file), quote(str(file), safe=""), 1)


def check_database(file: Path) -> None:
    """Check that the file is missing or a database: MLflow silently retries anything else for minutes.

    Raises:
        KvexpError: It is no file, a symbolic link, or cannot be read and written.
        sqlite3.Error: It is no database.
    """
    if file.is_symlink():  # MLflow would add its tables to whatever database it points at
        raise KvexpError(f"{file} is a symbolic link; type the file that it points at, {file.resolve()}")
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


def read_pid_namespace() -> str:
    """Return within what a process number is unique: the kernel's boot, and a container; empty if unknown."""
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    return ""


def is_alive(pid: str, since: str) -> bool:
    """Return whether the process that was started then lives; a later one may have its number.

    What is no number, and no time, is that of nobody, and nothing is known of it.
    """
    try:
        now, then = read_start_time(int(pid)), float(since or "nan")
    except (ValueError, OverflowError):
        return True
    # psutil adds to the boot time, which moves when the clock is set: allow a second.
    return bool(now) and not abs(float(now) - then) > 1
