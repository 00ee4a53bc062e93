"""Rows by name: of a path, of a git revision's baselines/, or of an MLflow run or sweep."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kvexp import tracking
from kvexp.errors import ConfigError, TrackingError
from kvexp.measurement import Row
from kvexp.results import baselines, load

POSSIBLE = (
    "a sweep's folder, a rows.jsonl or .parquet file, a folder of sweeps, a git revision with baselines/, "
    "or the id of an MLflow run or sweep"
)
_TRACKED = re.compile(r"[0-9a-f]{32}|[\w.+-]+/[\w.+-]+")


def read(name: str) -> Sequence[Row]:
    """The rows of what is named, one at least; a path comes first, then a revision, then a run.

    Raises:
        ConfigError: There is no such thing, or what it holds are no rows.
    """
    found = _read(name)
    if not found:
        raise ConfigError(f"{name} holds no whole row")
    return found


def _read(name: str) -> Sequence[Row]:
    if Path(name).exists():
        return load.read([Path(name)], Path())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        if not (baselines.check_out(name, folder) or _downloaded(name, folder)):
            raise ConfigError(f"{name} does not exist; give {POSSIBLE}")
        try:
            return load.read([folder], folder)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{folder}/", f"{name}: ")) from error


def _downloaded(name: str, folder: Path) -> bool:
    """The rows are below the folder; False where the store has no such run, or there is no store."""
    if not _TRACKED.fullmatch(name):
        return False
    uri = tracking.settings("local", None, None, "kvexp", os.environ).uri or ""
    file = tracking.sqlite_file(uri)
    if file is not None and not file.exists():
        return False
    tracking.quiet()
    from kvexp.tracking.fetch import fetch  # here, since it imports MLflow

    try:
        return fetch(uri, name, folder)
    except TrackingError as error:
        raise ConfigError(str(error)) from error
