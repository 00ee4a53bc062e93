"""Open MLflow's store, creating it if needed, and turn its errors into a TrackingError of one sentence."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests
import sqlalchemy.exc
from alembic.util.exc import CommandError
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from kvexp.errors import KvexpError, TrackingError
from kvexp.file_lock import locked
from kvexp.results.row_file import make_folder
from kvexp.tracking import mask_passwords, sqlite_file, ui_views
from kvexp.tracking.sqlite import check_database

# Creating MLflow's tables takes seconds, and processes that start at once wait for each other.
_LOCK_SECONDS = 120.0


@contextmanager
def convert_errors(uri: str) -> Iterator[None]:
    """Convert whatever MLflow and the libraries below it raise into a TrackingError of one sentence.

    Args:
        uri: The store's address, its password masked.
    """
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
        ValueError,  # an environment variable of MLflow's that is no number
        OSError,
    ) as error:
        # The drivers' messages contain newlines, and the address with its password.
        message = mask_passwords(" ".join(str(error).split()))
        raise TrackingError(
            f"the tracking store {uri} cannot be used: {message[:500]}", is_unreachable(error)
        ) from error


def open_store(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """Open the store, creating it and the experiment if needed; return its client and the experiment's id."""
    file = sqlite_file(uri)
    if file is None:
        client = MlflowClient(tracking_uri=uri)
        return client, _open_experiment(client, experiment, None)
    make_folder(file.parent)
    # Two processes that create MLflow's tables in one new sqlite file at once destroy it.
    with locked(file.parent / ".lock", _LOCK_SECONDS):
        if not file.exists():
            _create_database(uri, file)
        check_database(file)
        client = MlflowClient(tracking_uri=uri)
        return client, _open_experiment(client, experiment, (file.parent / "artifacts").as_uri())


def _create_database(uri: str, file: Path) -> None:
    """Create the file with MLflow's tables and then rename it: one with some of them is never usable."""
    new = file.with_name(f"{file.name}.new")
    for left in (new, *new.parent.glob(f"{new.name}-*")):
        left.unlink(missing_ok=True)
    MlflowClient(tracking_uri=uri.replace(str(file), str(new), 1))
    os.replace(new, file)


def _open_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            found = client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            # On a server another sweep may have created it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    _add_views(client, found)
    return str(found.experiment_id)


def _add_views(client: MlflowClient, experiment: Experiment) -> None:
    """Give the experiment its views and a description, except those that it already has."""
    with suppress(MlflowException):  # they are no reason to go untracked
        for key, value in ui_views.make_tags(experiment.creation_time or 0).items():
            if key not in experiment.tags:
                client.set_experiment_tag(experiment.experiment_id, key, value)


def is_unreachable(error: BaseException) -> bool:
    """Return whether a server did not answer; MLflow wraps the error of requests."""
    chain = (error, error.__cause__, error.__context__)
    if any(isinstance(link, requests.ConnectionError | requests.Timeout) for link in chain):
        return True
    said = str(error)
    return isinstance(error, MlflowException) and "API request to" in said and "endpoint" not in said


def silence_loggers() -> None:
    """Silence MLflow's, alembic's and urllib3's notes: what matters arrives as an exception."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
