"""The report and the figures that runs carry, sent after a sweep or by a sync."""

import shutil
from pathlib import Path

import pytest

from kvexp.report import embed
from kvexp.results import sweep_dir as sweep_folder
from kvexp.tracking import artifacts, connect, sync


def make_home(folder, job, measure):
    """Make a sweep's folder: a curve that was timed, and one that was skipped."""
    made = folder / "2026-11-21" / folder.name
    made.mkdir(parents=True)
    curves = (measure(surprise=1), measure(*["skipped"] * 16, layout="NHD", surprise=1))
    for number, rows in enumerate(curves):
        shutil.move(job(rows, number), made / str(number))
    return made


@pytest.fixture
def home(tmp_path, job, measure):
    return make_home(tmp_path, job, measure)


@pytest.fixture(scope="module")
def sent_home(tmp_path_factory, job, measure):
    return make_home(tmp_path_factory.mktemp("sent"), job, measure)


@pytest.fixture(scope="module")
def sent(sent_home, store, sweep):
    """The runs after a sync of everything: the sweep's, then its curves'; and what was said of it."""
    said = []
    sync.sync(sent_home, lambda: connect(store), said.append)
    return *sweep(sweep_folder.id_of(sent_home)), said


def files(client, run):
    return {file.path for file in client.list_artifacts(run.info.run_id)}


def test_the_sweeps_run_has_the_report_and_the_curves_their_figures(sent, client):
    parent, *curves, said = sent
    assert files(client, parent) == {"report.html", "report.md"}
    by_layout = {run.data.params["layout"]: files(client, run) for run in curves}
    assert by_layout["HND"] >= {"rows.jsonl", "latency.svg", "latency.png"}
    assert not by_layout["NHD"] & {"latency.svg", "latency.png"}
    assert len(said) == 1


def test_what_is_sent_is_what_kvexp_report_writes(sent, client, tmp_path):
    page = Path(client.download_artifacts(sent[0].info.run_id, "report.html", str(tmp_path)))
    assert "<h1>cuda HND bfloat16 takes " in page.read_text("utf-8")
    assert "16 skipped" in page.read_text("utf-8")


def test_the_sweeps_run_is_described_by_its_findings(sent):
    note = sent[0].data.tags["mlflow.note.content"]
    assert note.startswith("# cuda HND bfloat16 takes ")
    assert "16 ok and 16 skipped" in note
    assert "NVIDIA H200" in note
    assert "###" not in note


def test_a_sync_sends_a_report_that_is_missing_and_no_curve_again(sent, client, sent_home, store, sweep):
    parent, *curves, _ = sent
    client.delete_tag(parent.info.run_id, "kvexp.reported")
    shutil.rmtree(parent.info.artifact_uri.removeprefix("file://"))
    again = sync.sync(sent_home, lambda: connect(store), lambda _: None)
    assert (again.sent, again.already_sent) == (0, 2)
    assert files(client, parent) == {"report.html", "report.md"}
    assert len(sweep(sweep_folder.id_of(sent_home))) == 1 + len(curves)


def test_a_report_is_not_sent_twice(sent, sent_home, store, monkeypatch):
    monkeypatch.setattr(artifacts, "draw_report", lambda *_: pytest.fail("drawn again"))
    sync.sync(sent_home, lambda: connect(store), lambda line: pytest.fail(line))


def test_a_resumed_sweep_gets_a_new_report_and_description_unless_a_person_wrote_that(
    sent, sent_home, store, job, measure, client
):
    run_id = sent[0].info.run_id

    def resent(number, described):
        rows = measure("failed", dtype="half", seed=number, surprise=1)
        shutil.move(job(rows, number), sent_home / str(number))
        sync.sync(sent_home, lambda: connect(store), lambda _: None)
        assert described in client.get_run(run_id).data.tags["mlflow.note.content"]

    resent(2, "1 failed")
    assert "failed" in Path(client.download_artifacts(run_id, "report.md")).read_text("utf-8")
    client.set_tag(run_id, "mlflow.note.content", "Mine.")
    resent(3, "Mine.")


def test_of_two_sweeps_of_one_name_the_newer_one_gets_its_own_report(
    store, tracker, client, sweep, job, measure, experiment, tmp_path, request
):
    rows, sweep_id, parents = measure(surprise=1), f"multirun/{request.node.name}", []
    folder = job(rows)
    (tmp_path / "drawn").mkdir()
    for name in ("report.html", "report.md"):
        (tmp_path / "drawn" / name).write_text("# drawn")
    for _ in range(2):
        tracker.start_sweep(sweep_id, "")
        tracker.log_curve(folder, experiment.impl.target, rows)
        parents.append(tracker._parent_id)
    tracker.log_report(sweep_id, tmp_path / "drawn")
    found = [files(client, client.get_run(parent)) for parent in parents]
    assert found == [set(), {"report.html", "report.md"}]
    curves = [run.data.tags.get("mlflow.parentRunId") for run in sweep(sweep_id)]
    assert sorted(filter(None, curves)) == sorted(parents)


def test_a_figure_that_cannot_be_drawn_costs_its_curve_nothing_else(home, store, sweep, client, monkeypatch):
    def broken(*_):
        raise RuntimeError("no font was found")

    monkeypatch.setattr(embed, "save_curve", broken)
    done = sync.sync(home, lambda: connect(store), lambda _: None)
    assert (done.sent, done.refused) == (2, 0)
    for run in sweep(sweep_folder.id_of(home))[1:]:
        assert run.data.tags["kvexp.whole"] == "true"
        assert run.data.tags["kvexp.no_figure"] == "no font was found"
        assert not files(client, run) & {"latency.svg", "latency.png"}


def test_a_drawing_that_fails_costs_one_line(home, store, sweep, client, monkeypatch):
    def broken(*_):
        raise RuntimeError("no font was found")

    monkeypatch.setattr(artifacts, "draw_report", broken)
    said = []
    done = sync.sync(home, lambda: connect(store), said.append)
    assert (done.sent, done.refused) == (2, 0)
    assert said[-1] == "kvexp: no font was found; the runs have no report, and kvexp sync tries again"
    parent, *_ = sweep(sweep_folder.id_of(home))
    assert (files(client, parent), parent.info.status) == (set(), "FINISHED")
