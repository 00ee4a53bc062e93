"""Eight users' sweeps at once on one server: MLflow with accounts on PostgreSQL, artifacts through it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from kvexp.tracking.store import open_client
from tests.helpers import mlflow_server, postgres

ROOT = Path(__file__).parents[2]
USERS = tuple(f"user-{number}" for number in range(8))
PASSWORD = "a-long-one-for-a-test"
SWEEPS = """
import os, sys, traceback
from kvexp import cli
from kvexp.bench import child  # as mlflow: the sweeps import them
from kvexp.tracking import artifacts, mlflow
from tests.helpers.inline_tracker import InlineTracker, used_by_commands

artifacts.prepare()
words = ["impl=torch", "layout=NHD,HND", "workload=tiny", "timer=none", "device=cpu", "isolation=inline"]
start, go = os.pipe()
for user in sys.argv[1:]:
    if os.fork():
        continue
    os.close(go)
    os.makedirs(user)
    os.chdir(user)
    said = os.open("said", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ["MLFLOW_TRACKING_USERNAME"] = user
    os.read(start, 1)
    code = 1
    try:
        with used_by_commands(InlineTracker()):
            code = cli.dispatch([*words, f"tracking.tags.team={user}"])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)
os.close(go)
sys.exit(any([os.wait()[1] for _ in sys.argv[1:]]))
"""
"""Processes that have imported torch and MLflow once for all; the end of a pipe lets them go together."""


pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server's address, with an account for each user; this process and its children log in as admin."""
    programs = postgres.find_programs()
    if programs is None:
        pytest.skip(
            "PostgreSQL is not installed: initdb is neither on the PATH nor below /usr/lib/postgresql"
        )
    for module, package in (("psycopg2", "psycopg2-binary"), ("flask_wtf", "mlflow[auth]")):
        pytest.importorskip(module, reason=f"{package} is not installed")
    port = mlflow_server.free_port()
    with postgres.serve(programs, PASSWORD) as database_port:
        database = f"postgresql+psycopg2://postgres:{PASSWORD}@127.0.0.1:{database_port}"
        postgres.create_databases(database_port, PASSWORD, "runs", "accounts")
        config = {
            "default_permission": "EDIT",
            "database_uri": f"{database}/accounts",
            "admin_username": "admin",
            "admin_password": PASSWORD,
            "auth_cache_ttl_seconds": "60",
        }
        lines = ["[mlflow]", *(f"{key} = {value}" for key, value in config.items())]
        (tmp_path / "auth.ini").write_text("\n".join(lines))
        variables = {
            "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": PASSWORD,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "MLFLOW_EXPERIMENT_NAME": "shared",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "120",  # a busy machine's server is asked once
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        stores = ("--backend-store-uri", f"{database}/runs", "--artifacts-destination", "./artifacts")
        with mlflow_server.serve(("server", "--app-name", "basic-auth", *stores), tmp_path, port):
            address = f"http://127.0.0.1:{port}"
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            for user in USERS:
                account = {"username": user, "password": PASSWORD}
                made = requests.post(
                    f"{address}/api/2.0/mlflow/users/create",
                    json=account,
                    auth=("admin", PASSWORD),
                    timeout=120,
                )
                assert made.ok, made.text
            yield address


def test_eight_sweeps_at_once_have_every_curve_once_and_no_run_left_open(server, tmp_path):
    swept = tmp_path / "swept"
    swept.mkdir()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SWEEPS, *USERS]
    done = subprocess.run(command, cwd=swept, env=os.environ | {"PYTHONPATH": path}, timeout=600)
    said = {user: (swept / user / "said").read_text() for user in USERS}
    assert done.returncode == 0, said
    assert not [text for text in said.values() if "cannot be used" in text or "left out" in text]

    client = open_client(server)
    experiment = client.get_experiment_by_name("shared")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    curves = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    folders = [file.parent for file in swept.glob("*/multirun/*/*/*/rows.jsonl")]
    assert len(folders) == 2 * len(USERS)
    assert sorted(run.data.tags["kvexp.curve"] for run in curves) == sorted(
        "/".join(folder.parts[-3:]) for folder in folders
    )
    assert all(run.data.tags["team"] == run.data.tags["mlflow.user"] for run in runs)
    assert sorted(run.data.tags["team"] for run in parents) == sorted(USERS)
    assert {run.data.params["layout"] for run in parents} == {"NHD,HND"}
    assert {run.data.metrics["points_verified"] for run in parents} == {8.0}

    curve = curves[0]
    assert curve.info.artifact_uri.startswith("mlflow-artifacts:")
    held = next(swept.glob(f"*/multirun/{curve.data.tags['kvexp.curve']}/rows.jsonl"))
    sent = Path(client.download_artifacts(curve.info.run_id, "rows.jsonl", str(tmp_path)))
    assert sent.read_bytes() == held.read_bytes()
    assert (tmp_path / "artifacts").is_dir()
