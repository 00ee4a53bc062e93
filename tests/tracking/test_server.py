"""The store through MLflow's own server, started as `make ui` does."""

import json
import urllib.parse

import pytest

from kvexp.tracking import connect, settings
from tests.helpers import mlflow_server


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    port = mlflow_server.free_port()
    words = ("ui", "--backend-store-uri", store.uri)
    with mlflow_server.serve(words, tmp_path_factory.mktemp("server"), port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A busy machine's server is asked once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


def _get(url, **query):
    return mlflow_server.get(f"{url}?{urllib.parse.urlencode(query)}")


def test_the_ui_shows_a_local_sweeps_runs_and_their_artifacts(
    server, tracker, sweep, job, measure, experiment
):
    rows = measure()
    folder = job(rows)
    tracker.start_sweep("local", "")
    tracker.log_curve(folder, experiment.impl.target, rows)
    tracker.end_sweep("FINISHED")
    run_id = sweep("local")[1].info.run_id

    assert b"<!doctype html>" in _get(server)
    api = f"{server}/ajax-api/2.0/mlflow"
    run = json.loads(_get(f"{api}/runs/get", run_id=run_id))["run"]
    assert run["info"]["run_name"] == "cuda HND bfloat16"
    history = json.loads(_get(f"{api}/metrics/get-history", run_id=run_id, metric_key="latency_us"))
    assert len(history["metrics"]) == len(rows)
    listed = json.loads(_get(f"{api}/artifacts/list", run_id=run_id))["files"]
    figures = ["latency.png", "latency.svg"]
    assert [file["path"] for file in listed] == ["config", *figures, "rows.jsonl", "samples.jsonl"]
    downloaded = _get(f"{server}/get-artifact", run_uuid=run_id, path="rows.jsonl")
    assert downloaded == (folder / "rows.jsonl").read_bytes()


def test_a_sweep_sent_to_a_server_arrives_whole(server, client, job, measure, experiment):
    rows = measure("failed")
    folder = job(rows)
    tracker = connect(settings("server", server, None, "on the server", {}))
    number = client.get_experiment_by_name("on the server").experiment_id
    assert tracker.page.startswith(f"{server}/#/experiments/{number}/runs?")
    tracker.start_sweep("sent", "")
    tracker.log_curve(folder, experiment.impl.target, rows)
    tracker.end_sweep("FAILED")

    found = client.get_experiment_by_name("on the server")
    [child] = client.search_runs([found.experiment_id], "tags.status = 'failed'")
    assert child.info.status == "FAILED"
    assert child.data.metrics["points_ok"] == 15
    downloaded = _get(f"{server}/get-artifact", run_uuid=child.info.run_id, path="rows.jsonl")
    assert downloaded == (folder / "rows.jsonl").read_bytes()
