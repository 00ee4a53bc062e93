"""What a store keeps of finished sweeps, read back: the rows of a curve's run, or of a whole sweep's."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from kvexp.errors import ConfigError
from kvexp.results.row_file import ROWS
from kvexp.tracking import mask_passwords
from kvexp.tracking.store import border, hush

_MOST = 50_000  # runs of one answer: mlflow.store.tracking.SEARCH_MAX_RESULTS_THRESHOLD


def fetch(uri: str, name: str, folder: Path) -> bool:
    """The rows of each curve are in a file below the folder; False where the store has no such run.

    Args:
        uri: The store's address; its database exists.
        name: A curve's run or a sweep's, by its id, or a sweep by its date and time; without a quote.
        folder: Where to.

    Raises:
        ConfigError: Several sweeps have that name.
        TrackingError: The store is out of reach, or a run holds no rows.
    """
    hush()
    with border(mask_passwords(uri)):
        client = MlflowClient(tracking_uri=uri)
        runs = _runs(client, name)
    sweeps = list(dict.fromkeys(run.data.tags.get("mlflow.parentRunId", "") for run in runs))
    if len(sweeps) > 1:
        raise ConfigError(
            f"{name} is the name of {len(sweeps)} sweeps there; give the id of one's run: {', '.join(sweeps)}"
        )
    with border(mask_passwords(uri)):
        for number, run in enumerate(runs):
            job = folder / str(number)
            job.mkdir(parents=True)
            client.download_artifacts(run.info.run_id, ROWS, str(job))
    return bool(runs)


def _runs(client: MlflowClient, name: str) -> list[Run]:
    """The curves' runs that are whole, the oldest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]

    def found(where: str) -> list[Run]:
        return list(client.search_runs(experiments, where, max_results=_MOST, order_by=["start_time ASC"]))

    if "/" in name:
        return found(f"tags.`kvexp.sweep` = '{name}' and tags.`kvexp.whole` = 'true'")
    of_its_own = found(f"attributes.run_id = '{name}'")
    of_its_sweep = found(f"tags.`mlflow.parentRunId` = '{name}' and tags.`kvexp.whole` = 'true'")
    return of_its_sweep or [run for run in of_its_own if "kvexp.curve" in run.data.tags]
