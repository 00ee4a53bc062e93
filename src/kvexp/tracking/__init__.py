"""The contract of tracking: where rows are sent besides the disk, and what a sweep may ask of it.

Importing this package imports no MLflow; `connect` does, and only when something is tracked.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kvexp.errors import ConfigError, TrackingError
from kvexp.results.sweep_dir import mask_passwords as mask_passwords

KINDS = ("local", "server", "none")

# Read by MLflow when it is imported or used; whatever the user has set stays.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # With MLflow's own 7 retries of 120 s a server that is away holds one call for minutes; like this it
    # costs at most 12 s, and the sweep does not ask a second time.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "6",
}


@dataclass(frozen=True)
class TrackingSettings:
    """Where to track.

    Attributes:
        kind: `local`, `server` or `none`.
        uri: MLflow's tracking URI, a sqlite path in it absolute; None for `none`.
        experiment: The MLflow experiment's name.
    """

    kind: str
    uri: str | None
    experiment: str


class Tracker(Protocol):
    """What a sweep asks of a tracking store; every method raises TrackingError and nothing else.

    Attributes:
        uri: The store's address as it may be shown: a password in it is masked.
        page: Where a browser finds the sweep; empty for a store that is no server.
    """

    uri: str
    page: str

    def start_sweep(
        self, sweep_id: str, command: str, resumes: bool = False, name: str = "", began_ms: int | None = None
    ) -> None:
        """The sweep has its parent run: its earlier one, where it resumes and that is there.

        Args:
            sweep_id: By which the store knows it; see `folder.id_of`.
            command: What was typed.
            resumes: Whether it was begun before.
            name: What people call it; by default the id.
            began_ms: When it began, in milliseconds since 1970; by default now.
        """

    def log_curve(self, folder: Path, target: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """The curve's rows are a finished child run of the sweep, or are on their way; see `settle`.

        Args:
            folder: The job's.
            target: The dotted path of the implementation's class.
            rows: What `folder` holds.
        """

    def settle(self) -> None:
        """What was on its way has arrived; every other method waits for it, too, and raises its trouble."""

    def missing(self, sweep_id: str, folders: Sequence[Path]) -> list[Path]:
        """The curves' folders that no whole run of the sweep is of; runs that are not whole are deleted."""

    def end_sweep(self, status: str) -> None:
        """The parent run has ended as `FINISHED`, `FAILED` or `KILLED`."""

    def log_report(self, sweep_id: str, folder: Path) -> None:
        """The parent run has the sweep's report, as `folder` holds it."""

    def lacks_report(self, sweep_id: str) -> bool:
        """Whether the sweep has a parent run, but no report."""


def settings(
    kind: str,
    typed_uri: str | None,
    yaml_uri: str | None,
    experiment: str,
    environ: Mapping[str, str],
) -> TrackingSettings:
    """Where to track: the typed address, else the environment's, the YAML's, or mlruns/ here.

    Raises:
        ConfigError: The kind is unknown, a server has no address, or an address is a folder's.
    """
    if kind not in KINDS:
        raise ConfigError(f"tracking={kind} is unknown; choose one of {', '.join(KINDS)}")
    if kind == "none":
        return TrackingSettings(kind, None, experiment)
    addresses = {
        "tracking.uri": typed_uri,
        "MLFLOW_TRACKING_URI": environ.get("MLFLOW_TRACKING_URI"),
        f"conf/tracking/{kind}.yaml": yaml_uri,
    }
    for source, uri in addresses.items():
        if uri:
            return TrackingSettings(kind, _absolute(source, uri), experiment)
    if kind == "server":
        raise ConfigError(
            "tracking=server has no address; add tracking.uri=http://host:5000 or set MLFLOW_TRACKING_URI"
        )
    return TrackingSettings(kind, _sqlite(Path.cwd() / "mlruns"), experiment)


def sync_command(chosen: TrackingSettings, home: Path) -> str:
    """What sends the sweep in that folder to that store, typed where the sweep was; see `kvexp sync`."""
    words = ["kvexp", "sync", os.path.relpath(home)]
    if chosen.uri and chosen.uri != settings("local", None, None, chosen.experiment, os.environ).uri:
        words += ["--to", mask_passwords(chosen.uri)]
    if chosen.experiment != "kvexp":
        words += ["--experiment", chosen.experiment]
    return shlex.join(words)


def connect(settings: TrackingSettings) -> Tracker | None:
    """A store that is ready for a sweep; None when nothing is tracked.

    Raises:
        TrackingError: The store cannot be reached or made.
    """
    if settings.uri is None:
        return None
    query = settings.uri.partition("?")[2]
    if sqlite_file(settings.uri) and query and ("/" in query or "=" not in query):
        raise TrackingError(
            f"the tracking store {settings.uri} cannot be used: in an address a ? ends the file's path; "
            "type tracking.uri=sqlite:////FOLDER/mlflow.db with a folder that has none"
        )
    quiet()
    try:
        from kvexp.tracking.mlflow import MlflowTracker
    except ImportError as error:
        raise TrackingError(f"MLflow is not usable here ({error}); type tracking=none") from error
    return MlflowTracker(settings.uri, settings.experiment)


def quiet() -> None:
    """MLflow, imported after this, reports to nobody, and gives a server that is away up soon."""
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)


def sqlite_file(uri: str) -> Path | None:
    """The database's file where the address is a sqlite one, else None."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    return Path(match[1]) if match else None


def _sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def _absolute(source: str, uri: str) -> str:
    """The address, a sqlite file in it absolute: a relative one names another file after a chdir.

    A folder is refused: MLflow 3 keeps runs in a database, and one made silently in that folder
    would not be where the user's other tools look.
    """
    if uri.startswith("sqlite"):
        file = sqlite_file(uri)
        if file is None or file.name in ("", ":memory:"):
            raise ConfigError(f"{source}={uri} names no file; an example is {_sqlite(Path.cwd() / 'mlruns')}")
        driver, _, rest = uri.partition(":///")
        query = rest.partition("?")[1:]
        return f"{driver}:///{Path.cwd() / file.expanduser()}{''.join(query)}"
    has_scheme = re.match(r"[A-Za-z][\w+.-]*://", uri) or uri.startswith("databricks")
    if uri.startswith("file:") or not has_scheme:
        folder = Path.cwd() / re.sub(r"^file:(//)?", "", uri)
        raise ConfigError(
            f"{source}={uri} is a folder, but MLflow keeps runs in a database; "
            f"use {_sqlite(folder)} or a server's address"
        )
    return uri
