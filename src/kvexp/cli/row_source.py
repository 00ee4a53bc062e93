"""Read rows by name: a path, a git revision with baselines/, or an MLflow run or sweep."""

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kvexp import tracking
from kvexp.errors import ConfigError, TrackingError
from kvexp.measurement import Row
from kvexp.results import baselines, load
from kvexp.results.history import Revision
from kvexp.tracking.subprocess_tracker import SubprocessTracker

POSSIBLE = (
    "a sweep's folder, a rows.jsonl or .parquet file, a folder of sweeps, a git revision with baselines/, "
    "or the id of an MLflow run or sweep"
)
_TRACKED = re.compile(r"[0-9a-f]{32}|[\w.+-]+/[\w.+-]+")


def read(name: str) -> Sequence[Row]:
    """Read the rows of a path, else of a git revision, else of an MLflow run; there is at least one.

    Raises:
        ConfigError: Nothing has that name, or it holds no rows.
    """
    if Path(name).exists():
        return load.read([Path(name)], Path())
    return _read_elsewhere(name)


def read_history(name: str) -> list[Revision]:
    """Read the baselines of each commit that changed them, up to a git revision (`main`, `main:PATH`).

    Raises:
        ConfigError: There is none, or one holds no rows.
    """
    _, colon, path = name.partition(":")
    return [
        Revision(commit, date, subject, _read_elsewhere(f"{commit}{colon}{path}"))
        for commit, date, subject in baselines.list_commits(name)
    ]


def _read_elsewhere(name: str) -> Sequence[Row]:
    """Read the rows of a git revision, else of an MLflow run."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        if not (baselines.check_out(name, folder) or _download(name, folder)):
            raise ConfigError(f"{name} does not exist; give {POSSIBLE}")
        try:
            return load.read([folder], folder)
        except ConfigError as error:
            said = str(error).replace(f"{folder}/", f"{name}: ").replace(str(folder), name)
            raise ConfigError(said) from error


def _download(name: str, folder: Path) -> bool:
    """Download a run's rows into the folder; return False where there is no such run or no store."""
    if not _TRACKED.fullmatch(name):
        return False
    uri = tracking.settings("local", None, None, "kvexp", os.environ).uri or ""
    file = tracking.sqlite_file(uri)
    if file is not None and not file.is_file():
        return False
    try:
        with closing(SubprocessTracker()) as store:
            return store.download_rows(uri, name, folder)
    except TrackingError as error:
        raise ConfigError(str(error)) from error
