"""Links and pipes in a folder that someone else made: no link's target is written, and nothing waits."""

import os
import shutil
import signal

import pytest

from kvexp import cli, tracking
from kvexp.errors import TrackingError
from kvexp.results import baselines, jsonl
from kvexp.results.plan import PLAN
from kvexp.results.row_file import RowFile
from tests.helpers import recorded_rows

PRECIOUS = "what took a week\n"
SWEEP = ("impl=torch", "workload=tiny", "timer=none", "device=cpu", "tracking=none")


@pytest.fixture
def precious(tmp_path, monkeypatch):
    """A file of one's own outside of the folder where kvexp is typed, which must stay as it is."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = tmp_path / "precious"
    file.write_text(PRECIOUS)
    yield file
    assert file.read_text() == PRECIOUS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "precious"]


@pytest.fixture
def theirs(precious, tmp_path):
    """Someone else's sweep, with a link of each of these names."""

    def made(*names, target=precious):
        curves = [recorded_rows.curve({1: 2.0, 8: 3.0})]
        folder = recorded_rows.sweep(tmp_path / "here" / "their" / "sweep", curves)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(target)
        return folder

    return made


def test_a_report_takes_the_place_of_links(theirs):
    names = [f"machine1-panel1-{of}.{kind}" for of in ("copy", "latency") for kind in ("png", "svg")]
    names = ["report.html", "report.md", *(f"figures/{name}" for name in names)]
    folder = theirs(*names)
    assert cli.dispatch(["report", str(folder), "--figures", str(folder / "figures")]) == 0
    assert [name for name in names if (folder / name).is_symlink()] == []
    assert "<svg" in (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_an_export_takes_the_place_of_a_link(theirs, kind):
    folder = theirs(f"points.{kind}")
    assert cli.dispatch(["export", str(folder), "--output", str(folder / f"points.{kind}")]) == 0
    assert not (folder / f"points.{kind}").is_symlink()


def test_a_baseline_takes_the_place_of_links(precious, tmp_path):
    folder = tmp_path / "here" / "baselines" / "nvidia-h200"
    folder.mkdir(parents=True)
    for name in ("rows.jsonl", "rows.jsonl.new"):
        (folder / name).symlink_to(precious)
    (written,) = baselines.write(recorded_rows.curve({1: 2.0}))
    assert (written.is_symlink(), len(written.read_text().splitlines())) == (False, 1)


@pytest.mark.parametrize("name", [".lock", "multirun.yaml", "command.json"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_sweep_is_not_resumed_through_a_link(theirs, precious, capsys, name, dangling):
    folder = theirs(name, target=precious.with_name("to be made") if dangling else precious)
    assert cli.dispatch([*SWEEP, f"resume={folder}"]) == 2
    err = capsys.readouterr().err
    assert f"{folder}" in err
    assert "symbolic link" in err
    assert not list(folder.glob("1/*"))


@pytest.mark.parametrize(
    "name", [".lock", "multirun.yaml", "command.json", "0", "0/.hydra", "0/.hydra/config.yaml", "0/x.jsonl"]
)
@pytest.mark.parametrize("of", ["file", "folder", "nothing"])
def test_a_sweep_is_not_begun_through_a_link(theirs, precious, capsys, name, of):
    folder = theirs()
    shutil.rmtree(folder)
    (folder / name).parent.mkdir(parents=True)
    target = {"file": precious, "folder": precious.parent, "nothing": precious.with_name("to be made")}[of]
    (folder / name).symlink_to(target)
    assert cli.dispatch([*SWEEP, f"hydra.sweep.dir={folder}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"kvexp: {folder / name} is a symbolic link, through which a sweep does not write")
    assert (folder / name).is_symlink()


@pytest.mark.parametrize("name", ["rows.jsonl", "samples.jsonl"])
def test_rows_are_not_appended_to_what_a_link_points_at(theirs, precious, name):
    folder = theirs(f"1/{name}")
    with pytest.raises(OSError, match="it is a symbolic link"):
        RowFile(folder / "1")
    with pytest.raises(OSError, match="it is a symbolic link"):
        jsonl.append(folder / "1" / name, "{}")


@pytest.mark.parametrize(
    ("name", "said"),
    [(".lock", "symbolic link"), ("mlflow.db", "mlflow.db is a symbolic link; type the file .*{}")],
)
def test_a_store_is_neither_locked_nor_written_through_a_link(precious, tmp_path, name, said):
    (tmp_path / "here" / "mlruns").mkdir()
    (tmp_path / "here" / "mlruns" / name).symlink_to(precious)
    with pytest.raises(TrackingError, match=said.format(precious)):
        tracking.connect(tracking.settings("local", None, None, "kvexp", {}))


@pytest.mark.usefixtures("inline_tracker")
def test_nothing_is_sent_to_a_store_through_a_link(theirs, store, tmp_path, capsys):
    shutil.copytree(store, tmp_path / "here" / "mlruns")
    folder = theirs("0/samples.jsonl", "0/tracebacks.txt", "0/.hydra/config.yaml")
    assert cli.dispatch(["sync", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("1 curves sent")
    sent = [file for file in (tmp_path / "here" / "mlruns" / "artifacts").rglob("*") if file.is_file()]
    assert {"rows.jsonl", "overrides.yaml", "report.html"} <= {file.name for file in sent}
    assert [file for file in sent if PRECIOUS.encode() in file.read_bytes()] == []


def test_a_folder_with_links_is_not_cleared_away(theirs, precious, tmp_path):
    folder = theirs()
    shutil.rmtree(folder)
    mine = tmp_path / "here" / "mine"
    mine.mkdir()
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(mine)
    assert cli.dispatch([*SWEEP[1:], "impl=torch", "workload.num_heads=0", f"hydra.sweep.dir={folder}"]) == 2
    assert (folder.is_symlink(), mine.is_dir()) == (True, True)


@pytest.mark.usefixtures("inline_tracker", "database")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("report", "theirs"), 0, "report.html"),
        (("watch", "--once", "theirs"), 0, "points: 2"),
        (("sync", "theirs"), 0, "1 curves sent"),
        (("resume=theirs",), 2, "theirs/command.json does not say what was typed"),
        (
            ("report", "theirs/0/samples.jsonl"),
            2,
            "samples.jsonl cannot be read (it is a pipe, a device or a",
        ),
        (("export", "theirs/0/x.parquet"), 2, "x.parquet cannot be read as rows: "),
        (("export", "."), 2, "rows.jsonl cannot be read (it is a pipe, a device or a folder, not a file)"),
    ],
)
def test_a_pipe_in_a_folder_is_not_waited_for(place, typed, words, code, said):
    folder = recorded_rows.sweep(place.folder / "theirs", [recorded_rows.curve({1: 2.0, 8: 3.0})])
    (place.folder / "others" / "1").mkdir(parents=True)
    pipes = ["command.json", *(f"0/{name}" for name in ("samples.jsonl", PLAN, "x.parquet"))]
    for pipe in (*pipes, "0/.hydra/config.yaml", "../others/1/rows.jsonl"):
        os.mkfifo(folder / pipe)
    signal.alarm(100)  # ends whoever waits for it
    try:
        done = typed(*words)
    finally:
        signal.alarm(0)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
