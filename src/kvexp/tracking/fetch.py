"""Download the rows of a curve's run, or of a whole sweep's runs, from a store."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from kvexp.errors import ConfigError
from kvexp.results.row_file import ROWS
from kvexp.tracking.store import convert_errors, open_client, silence_loggers

_MOST = 50_000  # runs of one answer: mlflow.store.tracking.SEARCH_MAX_RESULTS_THRESHOLD


def download_rows(uri: str, name: str, folder: Path) -> bool:
    """Download the rows of each curve into a file below the folder; return False if there is no such run.

    Args:
        uri: The store's address; its database exists.
        name: The id of a curve's or a sweep's run, or a sweep's date and time; without a quote.
        folder: Where to.

    Raises:
        ConfigError: Several sweeps have that name.
        TrackingError: The store is out of reach, or a run holds no rows.
    """
    silence_loggers()
    with convert_errors(uri):
        client = open_client(uri)
        runs = _find_runs(client, name)
    sweeps = list(dict.fromkeys(run.data.tags.get("mlflow.parentRunId", "") for run in runs))
    if len(sweeps) > 1:
        raise ConfigError(
            f"{name} is the name of {len(sweeps)} sweeps there; give the id of one's run: {', '.join(sweeps)}"
        )
    with convert_errors(uri):
        for number, run in enumerate(runs):
            job = folder / str(number)
            job.mkdir(parents=True)
            client.download_artifacts(run.info.run_id, ROWS, str(job))
    return bool(runs)


def _find_runs(client: MlflowClient, name: str) -> list[Run]:
    """Find the complete runs of curves, the oldest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]

    def search(where: str) -> list[Run]:
        return list(client.search_runs(experiments, where, max_results=_MOST, order_by=["start_time ASC"]))

    if "/" in name:
        return search(f"tags.`kvexp.sweep` = '{name}' and tags.`kvexp.whole` = 'true'")
    by_id = search(f"attributes.run_id = '{name}'")
    by_parent = search(f"tags.`mlflow.parentRunId` = '{name}' and tags.`kvexp.whole` = 'true'")
    return by_parent or [run for run in by_id if "kvexp.curve" in run.data.tags]
