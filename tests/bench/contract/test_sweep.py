"""A sweep as it is typed: who breaks the contract is incorrect, and what else is not kept is said."""

import os
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from kvexp.results.row_file import read

KINDS = "honest,stale_slots,wraps_past_end"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The outcome of one sweep of three kinds, and its folder."""
    folder = tmp_path_factory.mktemp("swept")
    conf = folder / "conf" / "impl"
    conf.mkdir(parents=True)
    conf.joinpath("mine.yaml").write_text(
        "# Mine.\n_target_: tests.helpers.contract_breakers.Breaking\nkind: honest\n"
    )
    words = [
        "--config-dir", str(folder / "conf"), "impl=mine", f"impl.kind={KINDS}", "layout=NHD", "device=cpu",
        "workload=tiny", "timer.max_seconds=0.05", f"hydra.sweep.dir={folder / 'sweep'}",
        f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
    ]  # fmt: skip
    environment = {**os.environ, "KVEXP_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "kvexp", *words], capture_output=True, text=True, check=False, env=environment
    )
    return done, folder


def test_every_point_says_what_of_the_contract_is_kept(swept):
    _, folder = swept
    found = {(row["impl_options"], row["status"], row["contract"]) for row in read(folder / "sweep")}
    assert found == {
        ('{"kind":"honest"}', "ok", "full"),
        ('{"kind":"stale_slots"}', "incorrect", "fresh_slots"),
        ('{"kind":"wraps_past_end"}', "ok", "past_end"),
    }
    assert len(read(folder / "sweep")) == 12


def test_the_table_says_it_in_words_and_the_exit_code_is_one(swept):
    done, _ = swept
    assert done.returncode == 1
    assert "ok, but    kind=wraps_past_end: 4 points: writes slots past the end" in done.stdout
    assert (
        "incorrect  kind=stale_slots: 4 points: the call keeps the slots that it saw when it was bound"
        in (done.stdout)
    )
    assert "1 of 3 curves went wrong" in done.stderr


def test_mlflow_has_it_as_a_tag(swept):
    _, folder = swept
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string="params.impl = 'mine'")
    tags = {run.data.params["option.kind"]: run.data.tags["contract"] for run in runs}
    assert tags == {"honest": "full", "stale_slots": "fresh_slots", "wraps_past_end": "past_end"}


def test_a_report_says_it_in_words(swept):
    _, folder = swept
    subprocess.run([sys.executable, "-m", "kvexp", "report", str(folder / "sweep")], check=True, cwd=folder)
    text = (folder / "sweep" / "report.md").read_text()
    assert "kind=wraps_past_end: right, but writes slots past the end." in text


def test_each_answer_is_kept(swept):
    _, folder = swept
    assert len(list((folder / "cache" / "contracts").iterdir())) == 3
