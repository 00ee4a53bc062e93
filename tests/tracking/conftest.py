"""One real store for the whole folder: making MLflow's tables takes seconds."""

import pytest

from kvexp.experiment import Choice, Experiment, WorkloadSpec
from kvexp.measurement import Measurement, Statistics
from kvexp.results.row_file import RowFile
from kvexp.tracking import connect, settings

TOKENS = tuple(2**n for n in range(1, 17))
ENVIRONMENT = {
    "device_name": "NVIDIA H200",
    "compute_capability": "9.0",
    "sm_count": 132,
    "source_hash": "5" * 16,
    "git_commit": "a" * 40,
    "git_dirty": False,
    "triton": None,
}


@pytest.fixture(scope="session")
def experiment():
    return Experiment(
        op=Choice("reshape_and_cache_flash"),
        impl=Choice("cuda", "kvexp.impl.cuda.Cuda", {"threads": 256}),
        layout=Choice("HND"),
        dtype=Choice("bfloat16"),
        kv_cache_dtype=Choice("auto"),
        scale=Choice("per_tensor"),
        mode=Choice("cudagraph"),
        timer=Choice("cuda_event"),
        workload=WorkloadSpec(
            name="seed",
            num_tokens=TOKENS,
            num_heads=128,
            head_size=128,
            head_size_v=128,
            block_size=16,
            num_blocks=65536,
            num_query_heads=128,
        ),
        device="cuda:0",
        layout_reason="connector=nixl asks for HND",
    )


@pytest.fixture(scope="session")
def measure(experiment):
    """The rows of the experiment's curve, `statuses` being those of its first points."""

    def rows(*statuses, **columns):
        found = []
        every = [*statuses, *["ok"] * (len(TOKENS) - len(statuses))]
        for case, status in zip(experiment.cases(), every, strict=True):
            at = case.num_tokens / 10
            ok = status == "ok"
            measurement = Measurement(
                case,
                status,
                "" if ok else "it needs an NVIDIA GPU",
                Statistics(at, at * 0.99, None, at * 0.9, at * 1.1, at * 0.8, at, 0.01, 3) if ok else None,
                bytes_moved=case.num_tokens * 1000,
                copy_us=at * 0.95 if ok else None,
                started_at="2026-11-21T13:00:00.250+00:00",
                environment=ENVIRONMENT,
            )
            found.append(measurement.row() | columns)
        return found

    return rows


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Settings of a sqlite store that exists."""
    folder = tmp_path_factory.mktemp("store")
    found = settings("local", f"sqlite:///{folder}/mlruns/mlflow.db", None, "kvexp", {})
    connect(found)
    return found


@pytest.fixture
def tracker(store):
    return connect(store)


@pytest.fixture(scope="session")
def client(store):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store.uri)


@pytest.fixture(scope="session")
def sweep(client):
    """The runs of one sweep, the parent first, by the sweep's id."""

    def runs(sweep_id):
        experiment = client.get_experiment_by_name("kvexp")
        found = client.search_runs([experiment.experiment_id], f"tags.`kvexp.sweep` = '{sweep_id}'")
        return sorted(found, key=lambda run: "mlflow.parentRunId" in run.data.tags)

    return runs


@pytest.fixture
def stored(tracker, sweep, job, experiment):
    """Stores a sweep of one curve, and gives its runs, the sweep's first."""

    def runs(sweep_id, rows, status="FINISHED"):
        tracker.start_sweep(sweep_id, "")
        tracker.log_curve(job(rows), experiment.impl.target, rows)
        tracker.end_sweep(status)
        return sweep(sweep_id)

    return runs


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    """Puts rows, samples and a composed configuration where a job leaves them; gives the folder."""

    def written(rows, number=0):
        folder = tmp_path_factory.mktemp("job") / str(number)
        file = RowFile(folder)
        for row in rows:
            file.append(row, (1.0, 2.0) if row["status"] == "ok" else ())
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text("device: auto\n")
        (folder / ".hydra" / "overrides.yaml").write_text("- impl=cuda\n")
        return folder

    return written
