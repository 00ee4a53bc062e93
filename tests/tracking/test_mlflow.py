import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kvexp.errors import ConfigError, TrackingError
from kvexp.results import sweep_dir as sweep_folder
from kvexp.results.provenance import Provenance
from kvexp.tracking import artifacts, connect, fetch, settings, sync

ORIGIN = {
    "mlflow.user": "maria",
    "mlflow.source.name": "/home/maria/kvexp/__main__.py",
    "mlflow.source.git.commit": "b" * 40,
    "team": "x",
    "device_name": "a tag never takes the place of a column",
}


@pytest.fixture(scope="session")  # as the store: a process that comes back to this file makes no second one
def logged(store, sweep, job, measure, experiment):
    """One sweep of one curve, its first two points skipped: the parent's and the child's run."""
    tracker = connect(store)
    command = "python -m kvexp impl=cuda layout=HND"
    tracker.start_sweep(
        "logged", command, provenance=Provenance(ORIGIN, {"impl": "cuda", "layout": "NHD,HND"})
    )
    rows = measure("skipped", "skipped")
    tracker.log_curve(job(rows), experiment.impl.target, rows)
    tracker.end_sweep("FINISHED")
    return sweep("logged")


def test_a_sweep_is_a_parent_run_and_a_curve_its_child(logged):
    parent, child = logged
    assert parent.info.run_name == "logged"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.run_name == "cuda HND bfloat16"
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_the_parent_tells_command_machine_and_count(logged):
    parent, _ = logged
    assert parent.data.tags["command"] == "python -m kvexp impl=cuda layout=HND"
    assert parent.data.tags["device_name"] == "NVIDIA H200"
    assert parent.data.tags["git_dirty"] == "false"
    assert parent.data.metrics["points_ok"] == 14
    assert parent.data.metrics["points_skipped"] == 2


def test_both_tell_where_they_come_from_and_the_parent_what_was_swept(logged):
    for run in logged:
        assert {key: run.data.tags[key] for key in ORIGIN} == ORIGIN | {"device_name": "NVIDIA H200"}
        assert run.info.user_id == "maria"
    assert logged[0].data.params == {"impl": "cuda", "layout": "NHD,HND"}


def test_a_sweep_that_goes_on_gets_new_tags_and_keeps_its_params(store, sweep, job, measure, experiment):
    for params, team in (({"layout": "NHD,HND"}, "x"), ({"layout": "HND,auto", "seed": "1,2"}, "y")):
        again = connect(replace(store, tags=(("team", team),)))
        origin = Provenance({"team": "of the record", "site": "here"}, params)
        again.start_sweep("goes on", "", resumes=True, provenance=origin)
    rows = measure()
    again.log_curve(job(rows), experiment.impl.target, rows)
    runs = sweep("goes on")
    assert [(run.data.tags["team"], run.data.tags["site"]) for run in runs] == [("y", "here")] * 2
    assert runs[0].data.params == {"layout": "NHD,HND", "seed": "1,2"}


def test_a_sync_sends_the_origin_that_the_sweeps_folder_has(homes, store, sweep):
    record = homes[0] / sweep_folder.COMMAND
    record.unlink()
    shutil.rmtree(homes[0] / "0" / ".lock", ignore_errors=True)
    moved = shutil.move(homes[0] / "0", homes[0].parent / "aside")
    sweep_folder.write_command(
        homes[0], ["impl=cuda"], [], Provenance({"mlflow.user": "maria"}, {"impl": "a,b"})
    )
    shutil.move(moved, homes[0] / "0")
    sync.sync(homes[0], lambda: connect(store), lambda _: None)
    parent, child = sweep(sweep_folder.name_of(homes[0]))
    assert parent.info.user_id == child.info.user_id == "maria"
    assert parent.data.params == {"impl": "a,b"}


def test_the_child_holds_params_tags_and_scalars(logged):
    _, child = logged
    assert child.data.params["layout"] == "HND"
    assert child.data.params["layout_reason"] == "connector=nixl asks for HND"
    assert child.data.params["num_heads"] == "128"
    assert child.data.tags["compute_capability"] == "9.0"
    assert child.data.tags["impl_target"] == "kvexp.impl.cuda.Cuda"
    assert child.data.tags["status"] == "ok"
    assert child.data.metrics["points_ok"] == 14
    assert child.data.metrics["latency_us_at_max_tokens"] == pytest.approx(6553.6)


def test_a_curves_metrics_stand_at_step_num_tokens(logged, client):
    _, child = logged
    history = client.get_metric_history(child.info.run_id, "latency_us")
    assert [metric.step for metric in history] == [2**n for n in range(3, 17)]
    assert history[0].value == pytest.approx(0.8)


def test_the_run_begins_when_its_first_point_did(logged):
    _, child = logged
    assert child.info.start_time == 1795266000250
    assert child.info.end_time >= child.info.start_time


def test_rows_samples_configuration_and_the_figure_are_artifacts(logged, client, store):
    _, child = logged
    run_id = child.info.run_id
    files = "config latency.png latency.svg rows.jsonl samples.jsonl"
    assert [file.path for file in client.list_artifacts(run_id)] == files.split()
    config = ["config/config.yaml", "config/overrides.yaml"]
    assert [file.path for file in client.list_artifacts(run_id, "config")] == config
    mlruns = Path(store.uri.removeprefix("sqlite:///")).parent
    assert child.info.artifact_uri.startswith((mlruns / "artifacts").as_uri())


def test_a_sweep_that_reaches_its_store_late_began_when_it_did(tracker, sweep):
    tracker.start_sweep("late", "", name="late", began_ms=1_700_000_000_000)
    parent, *_ = sweep("late")
    assert parent.info.start_time == 1_700_000_000_000


def test_a_typed_password_is_in_no_artifact(tracker, sweep, client, job, measure, experiment, tmp_path):
    folder, uri = job(measure()), "http://maria:secret@host:5000"
    (folder / ".hydra" / "config.yaml").write_text(f"tracking:\n  uri: {uri}\ndevice: cpu\n")
    (folder / ".hydra" / "overrides.yaml").write_text(f"- impl=cuda\n- tracking.uri={uri}\n")
    tracker.start_sweep("typed", "")
    tracker.log_curve(folder, experiment.impl.target, measure())
    _, child = sweep("typed")
    (tmp_path / "sent").mkdir()
    sent = Path(client.download_artifacts(child.info.run_id, "", str(tmp_path / "sent")))
    assert len([file for file in sent.rglob("*") if file.is_file()]) == 6
    assert not [file for file in sent.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]
    assert yaml.safe_load((sent / "config" / "config.yaml").read_text()) == {
        "tracking": {"uri": "http://maria:***@host:5000"},
        "device": "cpu",
    }
    assert yaml.safe_load((sent / "config" / "overrides.yaml").read_text())[0] == "impl=cuda"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("status", ["incorrect", "failed"])
def test_a_curve_with_a_wrong_point_is_a_failed_run(stored, measure, status):
    parent, child = stored(f"wrong {status}", measure(status), "FAILED")
    assert (parent.info.status, child.info.status) == ("FAILED", "FAILED")
    assert child.data.metrics[f"points_{status}"] == 1


def test_a_curve_that_does_not_arrive_whole_is_a_failed_run(
    tracker, sweep, job, measure, experiment, monkeypatch
):
    def full(*_):
        raise OSError("No space left on device")

    tracker.start_sweep("full", "")
    monkeypatch.setattr(tracker._client, "log_artifact", full)
    with pytest.raises(TrackingError, match="No space left"):
        tracker.log_curve(job(measure()), experiment.impl.target, measure())
    assert sweep("full")[1].info.status == "FAILED"


@pytest.mark.parametrize("step", ["create_run", "log_artifact", "set_terminated", "set_tag"])
def test_a_curve_whose_sender_is_killed_at_any_step_is_sent_again_once(
    homes, store, sweep, monkeypatch, step
):
    class Killed(BaseException):
        """Nothing more is sent, and nobody is told."""

    home, sender = homes[0], connect(store)
    sweep_id, name = sweep_folder.id_of(home), sweep_folder.name_of(home)
    sender.start_sweep(sweep_id, "", name=name)
    really = getattr(sender._client, step)

    def killed_after(*arguments, **named):
        really(*arguments, **named)
        raise Killed

    monkeypatch.setattr(sender._client, step, killed_after)
    with pytest.raises(Killed):
        sync.send_curves(sender, [home / "0"], print)
    (begun,) = [run for run in sweep(name) if "kvexp.curve" in run.data.tags]
    assert ("kvexp.whole" in begun.data.tags) == (step == "set_tag")
    done = [sync.sync(home, lambda: connect(store), print) for _ in range(2)]
    is_whole = int(step == "set_tag")
    assert [(one.sent, one.already_sent) for one in done] == [(1 - is_whole, is_whole), (0, 1)]
    parent, child = sweep(name)
    assert (parent.info.status, child.info.status) == ("KILLED" if is_whole else "FINISHED", "FINISHED")
    assert child.data.tags["kvexp.whole"] == "true"
    assert child.data.metrics["points_ok"] == 16


def test_a_curve_without_any_right_point_has_no_latency(stored, measure):
    _, child = stored("nothing", measure(*["skipped"] * 16))
    assert child.info.status == "FINISHED"
    assert child.data.tags["reason"] == "it needs an NVIDIA GPU"
    assert not [key for key in child.data.metrics if "latency" in key or "gb_per_s" in key]


@pytest.mark.usefixtures("undrawn")
def test_a_curve_with_more_metrics_than_one_batch_arrives_whole(stored, client, measure):
    rows = [row | {"num_tokens": 100 * n + row["num_tokens"]} for n in range(9) for row in measure()]
    _, child = stored("long", rows)
    assert len(client.get_metric_history(child.info.run_id, "latency_us")) == len(rows)
    assert len(client.get_metric_history(child.info.run_id, "copy_fraction")) == len(rows)


@pytest.fixture
def undrawn(monkeypatch):
    """Draws nothing, where neither a figure nor a report is looked at."""
    monkeypatch.setattr(artifacts, "draw_figure", lambda rows, folder: "")
    monkeypatch.setattr(artifacts, "draw_report", lambda home, folder: None)


@pytest.fixture
def homes(tmp_path, job, measure, undrawn):
    """Two sweeps' folders of one name, as two checkouts have them, each with a curve."""
    made = [tmp_path / checkout / "multirun" / tmp_path.name for checkout in "ab"]
    for number, home in enumerate(made):
        home.mkdir(parents=True)
        sweep_folder.write_command(home, ["impl=cuda"], [])
        shutil.move(job(measure(surprise=1), number), home / "0")
    return made


def test_two_sweeps_of_one_name_are_both_sent_and_apart_and_the_name_is_read_as_neither(
    homes, store, sweep, tmp_path
):
    assert [sync.sync(home, lambda: connect(store), lambda _: None).sent for home in homes] == [1, 1]
    assert [sync.sync(home, lambda: connect(store), lambda _: None).already_sent for home in homes] == [1, 1]
    name = sweep_folder.name_of(homes[0])
    runs = sweep(name)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert {run.info.run_name for run in parents} == {name}
    assert {run.data.tags["kvexp.sweep_id"] for run in parents} == set(map(sweep_folder.id_of, homes))
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} == {
        None, *(run.info.run_id for run in parents)
    }  # fmt: skip
    assert len(runs) == 4
    with pytest.raises(ConfigError, match=f"{name} is the name of 2 sweeps there; give the id of one's run"):
        fetch.download_rows(store.uri, name, tmp_path / "by name")
    assert not (tmp_path / "by name").exists()
    assert fetch.download_rows(store.uri, parents[0].info.run_id, tmp_path / "by id")
    assert [file.name for file in (tmp_path / "by id").rglob("*.jsonl")] == ["rows.jsonl"]


def test_a_sweep_without_an_id_is_told_from_one_of_its_name_that_has_one(homes, store):
    (homes[0] / sweep_folder.COMMAND).unlink()
    for home in (*homes, *homes):
        sync.sync(home, lambda: connect(store), lambda _: None)
    assert [sync.sync(home, lambda: connect(store), lambda _: None).already_sent for home in homes] == [1, 1]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["it's 50%_", "a\"b'c\\"])
def test_a_sweep_of_whatever_name_is_sent_once(tmp_path, store, job, measure, sweep, name):
    home = tmp_path / "multirun" / name
    home.mkdir(parents=True)
    shutil.move(job(measure(surprise=1)), home / "0")
    first, second = (sync.sync(home, lambda: connect(store), lambda _: None) for _ in range(2))
    assert (first.sent, first.already_sent, second.sent, second.already_sent) == (1, 0, 0, 1)


def test_a_deleted_experiment_is_restored(store, client, tracker):
    client.delete_experiment(client.get_experiment_by_name("kvexp").experiment_id)
    connect(store)
    assert client.get_experiment_by_name("kvexp").lifecycle_stage == "active"


def test_processes_that_start_at_once_on_a_missing_store_share_it_and_a_dead_one_s_run_is_killed(tmp_path):
    code = (
        "import os, sys, kvexp.tracking as t\n"
        "sys.stdin.readline()\n"
        "tracker = t.connect(t.TrackingSettings('local', sys.argv[1], 'kvexp'))\n"
        "tracker.start_sweep(sys.argv[2], '')\n"
        "if sys.argv[2] == 'died':\n"
        "    os._exit(9)\n"
        "tracker.end_sweep('FINISHED')"
    )
    found = settings("local", f"sqlite:///{tmp_path}/mlruns/mlflow.db", None, "kvexp", {})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, found.uri, name],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"MLFLOW_TRACKING_URI": ""},
            text=True,
        )
        for name in ("ended", "died")
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[1] for process in processes] == ["", ""]

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=found.uri)

    def statuses():
        (experiment,) = client.search_experiments(filter_string="name = 'kvexp'")
        return {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}

    assert statuses().keys() == {"ended", "died"}
    connect(found).start_sweep("next", "")
    assert statuses() == {"ended": "FINISHED", "died": "KILLED", "next": "RUNNING"}
    connect(found).start_sweep("later", "")
    assert statuses()["next"] == "RUNNING"


def test_the_names_in_the_store_are_as_they_were(logged, client):
    parent, child = logged
    names = {
        run: {kind: sorted(getattr(data.data, kind)) for kind in ("params", "tags", "metrics")}
        for run, data in (("parent", parent), ("child", child))
    }
    assert names == json.loads(Path(__file__).with_name("names.json").read_text("utf-8"))
