"""Rows in MLflow: a parent run for the sweep, a child run for each curve.

The only file that imports MLflow; only `kvexp.tracking.connect` imports it, which quiets MLflow
first. Runs are addressed by their ids: no active run that one job could leak into the next, and no
tracking URI in the environment that a child process could inherit.
"""

import fcntl
import logging
import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import requests
import sqlalchemy.exc
from alembic.util.exc import CommandError
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from kvexp import __version__
from kvexp.errors import KvexpError, TrackingError
from kvexp.rows import ROWS, SAMPLES, Row, make_folder
from kvexp.tracking import curve, shown, sqlite_file

if TYPE_CHECKING:
    from kvexp.experiment import Experiment

_BATCH = 1000  # entities of one log_batch, params included: mlflow.utils.validation
_LOCK_SECONDS = 60.0


class MlflowTracker:
    """A store that is ready: its database and the experiment exist.

    Args:
        uri: The tracking URI; a sqlite path in it is absolute.
        experiment: The MLflow experiment's name.

    Raises:
        TrackingError: The store cannot be reached or made.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = shown(uri)
        self._host = socket.gethostname()
        self._sweep_id = ""
        self._parent_id = ""
        self._curves: list[Row] = []
        self._points: Counter[str] = Counter()
        _hush()
        with self._border():
            self._client, self._experiment_id = _ready(uri, experiment)

    def start_sweep(self, sweep_id: str, command: str) -> None:
        """The sweep has its parent run; runs that died on this host are closed first."""
        tags = {**self._tags(sweep_id), "command": command, "kvexp": __version__}
        with self._border():
            self._close_stale_runs()
            run = self._client.create_run(self._experiment_id, tags=tags, run_name=sweep_id)
        self._sweep_id, self._parent_id = sweep_id, run.info.run_id
        self._curves, self._points = [], Counter()

    def log_curve(self, folder: Path, experiment: "Experiment", rows: Sequence[Row]) -> None:
        """The curve's rows are a finished child run of the sweep; a curve without rows has none."""
        if not rows:
            return
        tags = {
            **self._tags(self._sweep_id),
            "mlflow.parentRunId": self._parent_id,
            "kvexp.curve": f"{self._sweep_id}/{folder.name}",
            "impl_target": experiment.impl.target,
            **curve.tags(rows),
        }
        counts = curve.counts(rows)
        wrong = counts["points_incorrect"] + counts["points_failed"]
        with self._border():
            run = self._client.create_run(
                self._experiment_id,
                start_time=min(curve.milliseconds(row) for row in rows),
                tags={key: value for key, value in tags.items() if value},
                run_name=curve.name(rows[0], self._curves),
            )
            try:
                self._log_numbers(run.info.run_id, rows)
                self._log_files(run.info.run_id, folder)
            except BaseException:
                # Nothing else would end it; a store that is away says so a second time in vain.
                with suppress(Exception):
                    self._client.set_terminated(run.info.run_id, "FAILED")
                raise
            self._client.set_terminated(run.info.run_id, "FAILED" if wrong else "FINISHED")
            if not self._curves:
                self._tag_parent(rows)
        self._curves.append(rows[0])
        self._points.update({key: int(value) for key, value in counts.items()})

    def end_sweep(self, status: str) -> None:
        """The parent run has ended, with the points of all its curves counted."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, 0) for key, value in self._points.items()]
        with self._border():
            self._client.log_batch(self._parent_id, metrics=metrics)
            self._client.set_terminated(self._parent_id, status)

    def _tags(self, sweep_id: str) -> dict[str, str]:
        """What every run carries, so that its sweep can be found and its death be noticed."""
        return {"kvexp.sweep": sweep_id, "kvexp.pid": str(os.getpid()), "host": self._host}

    def _tag_parent(self, rows: Sequence[Row]) -> None:
        """The sweep's machine and versions, known once its first curve is measured."""
        tags = [RunTag(key, value) for key, value in curve.environment(rows).items()]
        self._client.log_batch(self._parent_id, tags=tags[:100])

    def _log_numbers(self, run_id: str, rows: Sequence[Row]) -> None:
        """Params and metrics in one request, unless there are more metrics than one may carry."""
        params = [Param(key, value) for key, value in curve.params(rows[0]).items()]
        now = int(time.time() * 1000)
        metrics = [Metric(*point) for point in curve.metrics(rows)]
        metrics += [Metric(key, value, now, 0) for key, value in curve.scalars(rows).items()]
        first = _BATCH - len(params)
        self._client.log_batch(run_id, metrics=metrics[:first], params=params)
        for start in range(first, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _BATCH])

    def _log_files(self, run_id: str, folder: Path) -> None:
        """The rows, their samples and the composed configuration are the run's artifacts."""
        for file, place in (
            (folder / ROWS, None),
            (folder / SAMPLES, None),
            (folder / ".hydra" / "config.yaml", "config"),
            (folder / ".hydra" / "overrides.yaml", "config"),
        ):
            if file.exists():
                self._client.log_artifact(run_id, str(file), place)

    def _close_stale_runs(self) -> None:
        """Runs of this host whose process is gone are KILLED: nothing else ends them, ever."""
        running = f"attributes.status = 'RUNNING' and tags.host = '{self._host}'"
        for run in self._client.search_runs([self._experiment_id], running):
            pid = run.data.tags.get("kvexp.pid", "")
            if pid.isdecimal() and not _alive(int(pid)):
                self._client.set_terminated(run.info.run_id, "KILLED")

    @contextmanager
    def _border(self) -> Iterator[None]:
        """Whatever goes wrong in MLflow and below is a TrackingError of one sentence."""
        try:
            yield
        except (
            MlflowException,
            KvexpError,
            sqlalchemy.exc.SQLAlchemyError,
            sqlite3.Error,
            CommandError,
            requests.RequestException,
            ImportError,  # a database's driver that is not installed
            OSError,
        ) as error:
            # The drivers' messages hold newlines, and the address with its password.
            message = shown(" ".join(str(error).split()))
            raise TrackingError(f"the tracking store {self.uri} cannot be used: {message[:500]}") from error


def _ready(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client of a store that holds the experiment, and the experiment's id."""
    file = sqlite_file(uri)
    if file is None:
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment(client, experiment, None)
    make_folder(file.parent)
    _check_database(file)
    # Two processes that make MLflow's tables in one new sqlite file at once destroy it.
    with _locked(file.parent / ".lock"):
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment(client, experiment, (file.parent / "artifacts").as_uri())


def _check_database(file: Path) -> None:
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
    with closing(sqlite3.connect(file)) as database:
        database.execute("pragma user_version")


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            # On a server another sweep may have been faster; what else went wrong shows again.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """This process alone is inside, of all that lock the same file; a killed one leaves no lock."""
    patience = time.monotonic() + _LOCK_SECONDS
    with file.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise TimeoutError(f"another process has held {file} for {_LOCK_SECONDS:.0f} s") from None
                time.sleep(0.05)
        yield


def _hush() -> None:
    """MLflow's, alembic's and urllib3's notes stay silent: what matters arrives as an exception."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
