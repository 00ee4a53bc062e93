"""MLflow's store, made ready once by one process, and its errors as one sentence."""

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

# Making MLflow's tables takes seconds; many processes that start at once do so one after another.
_LOCK_SECONDS = 120.0


@contextmanager
def border(uri: str) -> Iterator[None]:
    """Whatever goes wrong in MLflow and below is a TrackingError of one sentence.

    Args:
        uri: The store's address as it may be shown.
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
        ValueError,  # a variable of MLflow's in the environment that is no number
        OSError,
    ) as error:
        # The drivers' messages hold newlines, and the address with its password.
        message = mask_passwords(" ".join(str(error).split()))
        raise TrackingError(
            f"the tracking store {uri} cannot be used: {message[:500]}", unreachable(error)
        ) from error


def ready(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client of a store that holds the experiment, and the experiment's id."""
    file = sqlite_file(uri)
    if file is None:
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment(client, experiment, None)
    make_folder(file.parent)
    # Two processes that make MLflow's tables in one new sqlite file at once destroy it.
    with locked(file.parent / ".lock", _LOCK_SECONDS):
        if not file.exists():
            _make(uri, file)
        check_database(file)
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment(client, experiment, (file.parent / "artifacts").as_uri())


def _make(uri: str, file: Path) -> None:
    """The file is there with MLflow's tables, or not at all: one that is made in part is never usable."""
    new = file.with_name(f"{file.name}.new")
    for left in (new, *new.parent.glob(f"{new.name}-*")):
        left.unlink(missing_ok=True)
    MlflowClient(tracking_uri=uri.replace(str(file), str(new), 1))
    os.replace(new, file)


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            found = client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            # On a server another sweep may have been faster; what else went wrong shows again.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    _show(client, found)
    return str(found.experiment_id)


def _show(client: MlflowClient, experiment: Experiment) -> None:
    """The experiment has its views and a description; what it has of these already stays."""
    with suppress(MlflowException):  # they are no reason to go untracked
        for key, value in ui_views.tags(experiment.creation_time or 0).items():
            if key not in experiment.tags:
                client.set_experiment_tag(experiment.experiment_id, key, value)


def unreachable(error: BaseException) -> bool:
    """Whether a server did not answer; MLflow wraps what requests raised."""
    chain = (error, error.__cause__, error.__context__)
    if any(isinstance(link, requests.ConnectionError | requests.Timeout) for link in chain):
        return True
    said = str(error)
    return isinstance(error, MlflowException) and "API request to" in said and "endpoint" not in said


def hush() -> None:
    """MLflow's, alembic's and urllib3's notes stay silent: what matters arrives as an exception."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
