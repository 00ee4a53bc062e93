"""Open MLflow's store, creating it if needed, and turn its errors into a TrackingError of one sentence."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from kvexp.errors import TrackingError
from kvexp.host.addresses import mask_address, mask_secrets
from kvexp.host.file_lock import locked
from kvexp.host.plain_file import find_gone
from kvexp.results.row_file import make_folder
from kvexp.tracking import sqlite_file, ui_views
from kvexp.tracking.sqlite import check_database, format_for_sqlalchemy

# Creating MLflow's tables takes seconds, and processes that start at once wait for each other.
_LOCK_SECONDS = 120.0
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INTERNAL_ERROR")
_REFUSAL_CODES = (400, 413, 422)
_LONGEST_MESSAGE = 500
_REMARK = re.compile(r" ?\((raised as a result|Background on) [^)]*\)")
"""What SQLAlchemy adds to an error."""


@contextmanager
def convert_errors(uri: str, *, is_open: bool = False) -> Iterator[None]:
    """Convert whatever MLflow and the libraries below it raise into a TrackingError of one sentence.

    A file of a store that was opened before can be gone.
    """
    try:
        yield
    except Exception as error:
        file = sqlite_file(uri)
        gone = find_gone(file) if file and is_open else None
        said = f"{gone} is gone" if gone else describe_error(error, uri)
        unreachable = bool(gone) or is_unreachable(error)
        raise TrackingError(
            f"the tracking store {mask_address(uri)} cannot be used: {said}",
            unreachable,
            was_dropped=is_unreachable(error) and "timed out" not in str(error),
        ) from error


def describe_error(error: BaseException, uri: str) -> str:
    """Return what a driver or server says in one line, without statements, secrets and control characters."""
    said = (
        _REMARK.sub("", " ".join(str(error).split()).partition(" [SQL: ")[0]).strip() or type(error).__name__
    )
    said = "".join(letter if letter.isprintable() else "?" for letter in said)
    secrets = (os.environ.get(name, "").strip() for name in _SECRETS)
    return mask_secrets(said, uri, *secrets)[:_LONGEST_MESSAGE]


def open_client(uri: str) -> MlflowClient:
    """Open the store at the address; a sqlite file that is missing is made."""
    return MlflowClient(tracking_uri=format_for_sqlalchemy(uri))


def open_store(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """Open the store, creating it and the experiment if needed; return its client and the experiment's id."""
    file = sqlite_file(uri)
    if file is None:
        client = open_client(uri)
        return client, _open_experiment(client, experiment, None)
    make_folder(file.parent)
    # Two processes that create MLflow's tables in one new sqlite file at once destroy it.
    with locked(file.parent / ".lock", _LOCK_SECONDS):
        if not file.exists():
            _create_database(uri, file)
        check_database(file)
        client = open_client(uri)
        return client, _open_experiment(client, experiment, (file.parent / "artifacts").as_uri())


def _create_database(uri: str, file: Path) -> None:
    """Create the file with MLflow's tables and then rename it: one with some of them is never usable."""
    new = file.with_name(f"{file.name}.new")
    for left in (new, *new.parent.glob(f"{new.name}-*")):
        left.unlink(missing_ok=True)
    open_client(uri.replace(str(file), str(new), 1))
    os.replace(new, file)


def _open_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            found = client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException as error:
            # On a server another sweep may have created it meanwhile.
            found = None if is_unreachable(error) else client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    _add_views(client, found)
    return str(found.experiment_id)


def _add_views(client: MlflowClient, experiment: Experiment) -> None:
    """Give the experiment its views and a description, except those that it already has."""
    with ignore_refusals():
        for key, value in ui_views.make_tags(experiment.creation_time or 0).items():
            if key not in experiment.tags:
                client.set_experiment_tag(experiment.experiment_id, key, value)


@contextmanager
def ignore_refusals() -> Iterator[None]:
    """Ignore a store's error about something that nobody needs, such as a view, unless it does not answer."""
    try:
        yield
    except MlflowException as error:
        if is_unreachable(error):
            raise


def is_refusal(error: BaseException | None) -> bool:
    """Return whether what was sent may be the reason, so that the store may take something else."""
    if isinstance(error, requests.HTTPError):  # of a server that keeps artifacts
        return error.response is not None and error.response.status_code in _REFUSAL_CODES
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS and not is_unreachable(error)
    return isinstance(error, ValueError | TypeError | ArithmeticError) and not isinstance(error, OSError)


def is_unreachable(error: BaseException) -> bool:
    """Return whether a server did not answer; MLflow wraps the error of requests."""
    chain = (error, error.__cause__, error.__context__)
    if any(isinstance(link, requests.ConnectionError | requests.Timeout) for link in chain):
        return True
    said = str(error)
    # MLflow says "API request to endpoint ..." of an answer that it does not like.
    return isinstance(error, MlflowException) and "API request to http" in said


def silence_loggers() -> None:
    """Silence MLflow's, alembic's and urllib3's notes: what matters arrives as an exception."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
