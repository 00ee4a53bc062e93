"""What compare reads when it is given a name: a path, a git revision, an MLflow run or sweep."""

import json
import os
import sqlite3
import subprocess
from contextlib import closing

import pytest

from kvexp import cli
from kvexp.cli import row_source
from kvexp.cli.commands import sync
from kvexp.results import baselines, load
from kvexp.tracking.subprocess_tracker import SubprocessTracker
from tests.helpers.recorded_rows import curve, refused, row, sweep

SWEEP = "2026-11-21/10-00-00-000001"


def git(*words):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty repository that is the current folder, with a sweep `now` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    git("init", "-b", "main")
    sweep(tmp_path / "now", [curve({8: 2.0, 512: 12.0})])
    return tmp_path


def test_a_revision_is_the_baselines_of_its_time(here, capsys):
    for latency_us, device in ((10.0, "NVIDIA H200"), (12.0, "NVIDIA H200"), (1.0, "NVIDIA H100")):
        baselines.write(curve({8: 2.0, 512: latency_us}, device_name=device))
        git("add", "baselines")
        git("commit", "-m", f"{latency_us} on {device}")
    assert cli.dispatch(["compare", "main", "now"]) == 0
    assert cli.dispatch(["compare", "HEAD~2", "now"]) == 1
    assert cli.dispatch(["compare", "HEAD~2", "main:baselines/nvidia-h200"]) == 1
    counted = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" ambiguous")]
    assert counted == ["2 ambiguous", "1 slower, 1 ambiguous", "1 slower, 1 ambiguous"]
    assert cli.dispatch(["compare", "now", "main"]) == 2
    assert "NVIDIA H100, NVIDIA H200" in capsys.readouterr().err


def commit_baseline(latency_us, subject, **columns):
    baselines.write(curve({8: 2.0, 512: latency_us}, **columns))
    git("add", "baselines")
    git("commit", "-m", subject)


def test_a_history_names_the_commit_at_which_a_point_changed(here, capsys):
    for number, latency_us in enumerate((10.0, 10.05, 12.0, 12.05, 9.0)):
        commit_baseline(latency_us, f"commit {number}")
        git("commit", "--allow-empty", "-m", "nothing")
    assert cli.dispatch(["compare", "--history", "--format", "json", "--figure", "h.svg"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["subject"] for one in found["revisions"]] == [f"commit {number}" for number in range(5)]
    hashes = [one["commit"] for one in found["revisions"]]
    changed, calm = found["points"]
    assert (changed["num_tokens"], calm["num_tokens"], calm["changes"]) == (512, 8, [])
    assert changed["latencies_us"] == [10.0, 10.05, 12.0, 12.05, 9.0]
    assert [(one["commit"], one["word"]) for one in changed["changes"]] == [
        (hashes[2], "slower"),
        (hashes[4], "faster"),
    ]
    assert [one["ratio"] for one in changed["changes"]] == pytest.approx([1.2, 0.75])
    assert hashes[2] in (here / "h.svg").read_text()
    assert cli.dispatch(["compare", "--history", "HEAD~4", "--format", "markdown"]) == 0
    heading, _, first, *_ = capsys.readouterr().out.splitlines()
    assert "| last / first | changed at |" in heading
    assert f"| {hashes[2]} slower 1.200 |" in first


def test_many_small_steps_are_a_change(here, capsys):
    for number in range(6):
        commit_baseline(10 * 1.02**number, f"commit {number}")
    assert cli.dispatch(["compare", "--history", "--format", "json"]) == 0
    changed, _ = json.loads(capsys.readouterr().out)["points"]
    assert [one["word"] for one in changed["changes"]] == ["slower"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--history"], "no commit up to HEAD has written baselines/<gpu>/rows.jsonl"),
        (["--history", "gone"], "gone is no git revision around the current folder"),
        (["--history", "main", "now"], "--history takes one git revision"),
        (["--history", "--figure", "h.txt"], "--figure must end in .svg, .png or .pdf, not 'h.txt'"),
        (["main", "now", "--figure", "h.svg"], "--figure draws what --history finds"),
        (["main", "now", "--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_a_history_that_is_not_there_is_one_sentence(here, capsys, words, said):
    git("commit", "--allow-empty", "-m", "one")
    assert cli.dispatch(["compare", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_comparison_is_printed_for_programs_and_as_markdown(here, capsys):
    sweep(here / "then", [curve({8: 2.0, 512: 10.0})])
    assert cli.dispatch(["compare", "then", "now", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"slower": 1, "ambiguous": 1}
    worst = found["points"][0]
    assert (worst["verdict"], worst["baseline_us"], worst["candidate_us"]) == ("slower", 10.0, 12.0)
    assert worst["ratio"] == pytest.approx(1.2)
    assert worst["ratio_low"] < worst["ratio"] < worst["ratio_high"]
    assert cli.dispatch(["compare", "then", "now", "--format", "markdown"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "| num_tokens | baseline (µs) | candidate (µs) | candidate / baseline | between |" in lines[0]
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    assert lines[2].startswith("| slower | ")
    assert lines[-2:] == ["", "1 slower, 1 ambiguous"]


def test_a_baseline_is_made_of_rows_that_are_there(here, capsys):
    assert cli.dispatch(["baseline", "--from", "now"]) == 0
    written = here / "baselines" / "nvidia-h200" / "rows.jsonl"
    assert len(written.read_text().splitlines()) == 2
    out = capsys.readouterr()
    assert out.out == "baselines/nvidia-h200/rows.jsonl\n"
    assert "2 points were timed by fewer than 5 processes" in out.err
    assert cli.dispatch(["compare", "baselines", "now"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["now", "impl=torch"], "baseline: --from takes rows as they are, so 'impl=torch' cannot be typed"),
        (["gone"], "gone does not exist; give a sweep's folder"),
        (["wrong"], "baseline: 1 of the 1 rows of wrong are incorrect or failed"),
        (["untimed"], "baseline: nothing was timed, so there is no baseline to write"),
    ],
)
def test_rows_that_are_no_baseline_are_one_sentence(here, capsys, words, said):
    sweep(here / "wrong", [[refused("incorrect", "wrong bytes")]])
    sweep(here / "untimed", [[refused("verified", "not timed")]])
    assert cli.dispatch(["baseline", "--from", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (here / "baselines").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]\n{}\n", "main: baselines/nvidia-h200/rows.jsonl, line 1: a row is a JSON object"),
        (None, "git revision main has no baselines/<gpu>/rows.jsonl; kvexp baseline writes them"),
    ],
)
def test_a_revision_without_a_baseline_of_rows_is_one_sentence(here, capsys, content, said):
    if content:
        (baselines.write([row()])[0]).write_text(content)
        git("add", "baselines")
    git("commit", "--allow-empty", "-m", "one")
    assert cli.dispatch(["compare", "main", "now"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gone", "2026-11-21/gone", "0" * 32, "a'/b", "--gone"])
def test_what_is_nowhere_is_one_sentence_and_makes_no_store(here, capsys, name):
    assert cli.dispatch(["compare", "--", name, "now"]) == 2
    assert f"kvexp: {name} does not exist; give a sweep's folder" in capsys.readouterr().err
    assert not (here / "mlruns").exists()


@pytest.fixture(scope="module")
def one_tracker():
    """One process for all tests, since it imports MLflow for seconds."""
    with closing(SubprocessTracker()) as made, pytest.MonkeyPatch.context() as patched:
        patched.setattr(made, "close", lambda: None)
        for module in (row_source, sync):
            patched.setattr(module, "SubprocessTracker", lambda: made)
        yield
        patched.undo()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, one_tracker):
    """A folder with a store that holds one sweep: two curves, each by two processes."""
    folder = tmp_path_factory.mktemp("tracked")
    curves = [
        curve({4: latency}, impl="torch", layout=layout, repetition=repetition, workload="tiny")
        for repetition, latency in ((1, 2.0), (2, 2.1))
        for layout in ("NHD", "HND")
    ]
    sweep(folder / "multirun" / SWEEP, curves)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert cli.dispatch(["sync"]) == 0
    return folder


@pytest.fixture
def stored(tracked, monkeypatch):
    monkeypatch.chdir(tracked)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tracked


def run_of(name):
    with closing(sqlite3.connect("mlruns/mlflow.db")) as database:
        return database.execute("select run_uuid from runs where name like ?", [f"{name}%"]).fetchone()[0]


def without_added(rows):
    """The rows as they are on disk, sorted."""
    added = ("sweep", "command")
    return sorted(str({column: row[column] for column in row if column not in added}) for row in rows)


def test_a_sweep_is_found_by_its_name_or_its_run(stored):
    on_disk = without_added(load.read([stored / "multirun" / SWEEP], stored))
    assert len(on_disk) == 4
    for name in (SWEEP, run_of(SWEEP)):
        assert without_added(row_source.read(name)) == on_disk


def test_a_curve_is_found_by_its_run(stored):
    (one,) = row_source.read(run_of("torch HND"))
    assert without_added([one])[0] in without_added(load.read([stored / "multirun" / SWEEP], stored))


@pytest.mark.usefixtures("stored")
def test_a_run_is_a_side_of_a_comparison(capsys):
    for verdict, code in (("broken", 0), ("missing", 1)):
        assert cli.dispatch(["compare", SWEEP, run_of("torch HND"), "--fail-on", verdict]) == code
        assert "1 missing" in capsys.readouterr().out


@pytest.mark.usefixtures("stored")
def test_a_store_that_has_no_such_run_says_nothing_else(capsys):
    for name in ("0" * 32, "2026-11-21/gone"):
        assert cli.dispatch(["compare", name, f"multirun/{SWEEP}"]) == 2
        assert f"{name} does not exist" in capsys.readouterr().err


@pytest.mark.usefixtures("one_tracker")
def test_a_store_that_is_broken_is_one_sentence(here, monkeypatch, capsys):
    (here / "mlruns").mkdir()
    (here / "mlruns" / "mlflow.db").write_bytes(os.urandom(4096))
    assert cli.dispatch(["compare", SWEEP, "now"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("kvexp: the tracking store sqlite:////")
    assert said.count("\n") == 1


def test_a_pipe_in_the_stores_place_is_no_store(here, capsys):
    (here / "mlruns").mkdir()
    os.mkfifo(here / "mlruns" / "mlflow.db")
    assert cli.dispatch(["compare", "0" * 32, "now"]) == 2
    assert f"kvexp: {'0' * 32} does not exist; give " in capsys.readouterr().err


def test_a_sweep_of_which_no_row_is_whole_is_not_taken_for_another(here, capsys):
    sweep(here / "multirun" / "2026-11-21" / "10-00", [curve({8: 2.0}), curve({8: 3.0}, layout="NHD")])
    torn = sweep(here / "torn", [curve({8: 2.0})])
    (torn / "0" / "rows.jsonl").write_text('{"status": "o')
    axis = ("--axis", "layout", "--baseline", "NHD", "--candidate", "HND")
    compared = (("compare", "torn", *axis), ("compare", "now", "torn"))
    for words in (*compared, ("report", "torn"), ("export", "torn"), ("export", "torn/0/rows.jsonl")):
        assert cli.dispatch(list(words)) == 2
        assert "holds no whole row\n" in capsys.readouterr().err
