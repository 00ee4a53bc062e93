"""Tracking: send rows, figures and reports to MLflow, besides what is on disk.

May import report and what is below it. Importing this package imports no MLflow; `connect` does.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from kvexp.errors import ConfigError, TrackingError
from kvexp.host.addresses import mask_address
from kvexp.results.provenance import Provenance

KINDS = ("local", "server", "none")
EXPERIMENT = "kvexp"
"""The MLflow experiment's name where nobody chooses another one."""
UNKNOWN = Provenance()

# Read by MLflow when it is imported or used; what the user has set stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A request without an answer is not repeated: the server may be slow, and would make a second run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "12",
}
_PATIENCE = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")
_ANSWER_SECONDS, _MARGIN_SECONDS = 15.0, 3.0
_HOST_AND_PORT = re.compile(r"([^/@]+@)?([\w.-]+|\[[\da-fA-F:]+\]):\d+(/.*)?")


@dataclass(frozen=True)
class TrackingSettings:
    """Where to track.

    Attributes:
        kind: `local`, `server` or `none`.
        uri: MLflow's tracking URI, a sqlite path in it absolute; None for `none`.
        experiment: The MLflow experiment's name.
        tags: The user's own tags of every run, by name; see `kvexp.results.provenance`.
    """

    kind: str
    uri: str | None
    experiment: str
    tags: tuple[tuple[str, str], ...] = ()


class Tracker(Protocol):
    """A tracking store as a sweep uses it; every method raises TrackingError and nothing else.

    Attributes:
        uri: The store's address, its secrets masked.
        page: The address of the sweep's page; empty for a store that is no server.
        refused: A sentence for each curve that the store did not take, though it works.
        asks_first: Whether an answer was lost: what was sent may be there, and is looked for before.
    """

    uri: str
    page: str
    refused: list[str]
    asks_first: bool

    def start_sweep(
        self,
        sweep_id: str,
        command: str,
        resumes: bool = False,
        name: str = "",
        began_ms: int | None = None,
        provenance: Provenance = UNKNOWN,
    ) -> None:
        """Create the sweep's parent run, or reopen the earlier one of a sweep that resumes.

        Args:
            sweep_id: See `sweep_dir.id_of`.
            command: What was typed.
            resumes: Whether the sweep was started before.
            name: The run's name; by default the id.
            began_ms: When the sweep began, in milliseconds since 1970; by default now.
            provenance: What else its runs are told of its origin.
        """

    def log_curve(self, folder: Path, target: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send the curve's rows as a finished child run of the sweep, or start to; see `settle`.

        A curve that the store refuses is no error: see `refused`.

        Args:
            folder: The job's.
            target: The dotted path of the implementation's class.
            rows: The rows in `folder`.
        """

    def settle(self) -> None:
        """Wait until everything is sent; every other method also waits, and raises what went wrong."""

    def missing(self, sweep_id: str, folders: Sequence[Path]) -> list[Path]:
        """Return the curves' folders without a complete run in the sweep; delete incomplete runs."""

    def end_sweep(self, status: str) -> None:
        """End the parent run as `FINISHED`, `FAILED` or `KILLED`."""

    def log_report(self, sweep_id: str, folder: Path) -> None:
        """Add the report in `folder` to the sweep's parent run."""

    def lacks_report(self, sweep_id: str) -> bool:
        """Return whether the sweep has a parent run, but no report."""


def settings(
    kind: str,
    typed_uri: str | None,
    yaml_uri: str | None,
    experiment: str,
    environ: Mapping[str, str],
    typed_experiment: str | None = None,
) -> TrackingSettings:
    """Choose where to track: the typed address, else the environment's, the YAML's, or ./mlruns.

    `experiment` is the YAML's; a typed one wins, else MLFLOW_EXPERIMENT_NAME.

    Raises:
        ConfigError: The kind is unknown, a server has no address, or an address is that of a folder, or has
            no scheme.
    """
    if kind not in KINDS:
        raise ConfigError(f"tracking={kind} is unknown; choose one of {', '.join(KINDS)}")
    experiment = typed_experiment or environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or experiment
    if kind == "none":
        return TrackingSettings(kind, None, experiment)
    addresses = {
        "tracking.uri": typed_uri,
        "MLFLOW_TRACKING_URI": environ.get("MLFLOW_TRACKING_URI"),
        f"conf/tracking/{kind}.yaml": yaml_uri,
    }
    for source, uri in addresses.items():
        if uri and uri.strip():  # a file's last newline is easily taken along
            return TrackingSettings(kind, _make_absolute(source, uri.strip()), experiment)
    if kind == "server":
        raise ConfigError(
            "tracking=server has no address; add tracking.uri=http://host:5000 or set MLFLOW_TRACKING_URI"
        )
    return TrackingSettings(kind, _format_sqlite(Path.cwd() / "mlruns"), experiment)


def sync_command(chosen: TrackingSettings, home: Path) -> str:
    """Return the `kvexp sync` command that sends the sweep in that folder to that store."""
    words = ["kvexp", "sync", os.path.relpath(home)]
    usual = settings("local", None, None, EXPERIMENT, os.environ)
    if chosen.uri and chosen.uri != usual.uri:
        words += ["--to", mask_address(chosen.uri)]
    if chosen.experiment != usual.experiment:
        words += ["--experiment", chosen.experiment]
    return shlex.join(words)


def connect(settings: TrackingSettings) -> Tracker | None:
    """Connect to the store, which is then ready for a sweep; return None when nothing is tracked.

    Raises:
        TrackingError: The store cannot be reached or created.
    """
    if settings.uri is None:
        return None
    query = settings.uri.partition("?")[2]
    if sqlite_file(settings.uri) and query and ("/" in query or "=" not in query):
        raise TrackingError(
            f"the tracking store {mask_address(settings.uri)} cannot be used: in an address a ? ends the "
            "file's path; type tracking.uri=sqlite:////FOLDER/mlflow.db with a folder that has none"
        )
    quiet()
    try:
        from kvexp.tracking.mlflow import MlflowTracker
    except Exception as error:  # it is missing, or a variable of its own stops it
        raise TrackingError(f"MLflow is not usable here ({error}); type tracking=none") from error
    return MlflowTracker(settings.uri, settings.experiment, dict(settings.tags))


def quiet() -> None:
    """Set MLflow's telemetry off and its timeouts short; call it before importing MLflow."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


def answer_seconds(environ: Mapping[str, str]) -> float:
    """Return the limit for one answer of a store: 15 s, or what MLflow's variables allow for a request."""
    try:
        timeout_s, retries = (int(environ.get(name, _ENVIRONMENT[name])) for name in _PATIENCE)
        return max(_ANSWER_SECONDS, timeout_s * (1 + retries) + _MARGIN_SECONDS)
    except ValueError:  # as MLflow will say
        return _ANSWER_SECONDS


def sqlite_file(uri: str) -> Path | None:
    """Return the database's file if the address is a sqlite one, else None."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    return Path(match[1]) if match else None


def _format_sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def _make_absolute(source: str, uri: str) -> str:
    """Make a sqlite file in the address absolute; refuse a folder, and a server's name alone.

    A % is one of the path's own, as in `$PWD`, unless there is no such folder but one of the decoded name.
    MLflow 3 stores runs in a database; the user's other tools would not look for one in a folder.
    """
    if uri.startswith("sqlite"):
        file = sqlite_file(uri)
        if file is None or file.name in ("", ":memory:"):
            example = _format_sqlite(Path.cwd() / "mlruns")
            raise ConfigError(f"{source}={uri} names no file; an example is {example}")
        driver, _, rest = uri.partition(":///")
        query = rest.partition("?")[1:]
        literal, decoded = (Path.cwd() / path.expanduser() for path in (file, Path(unquote(str(file)))))
        is_decoded = decoded != literal and decoded.parent.is_dir() and not literal.parent.is_dir()
        return f"{driver}:///{decoded if is_decoded else literal}{''.join(query)}"
    if _HOST_AND_PORT.fullmatch(uri):
        example = mask_address(f"http://{uri}")
        raise ConfigError(f"{source} has no scheme, so it would be a folder; a server's address is {example}")
    has_scheme = re.match(r"[A-Za-z][\w+.-]*://", uri) or uri.startswith("databricks")
    if uri.startswith("file:") or not has_scheme:
        folder = Path.cwd() / re.sub(r"^file:(//)?", "", uri)
        raise ConfigError(
            f"{source}={uri} is a folder, but MLflow stores runs in a database; "
            f"use {_format_sqlite(folder)} or a server's address"
        )
    return uri
