"""One tidy row for each point, in whatever format."""

import json
import subprocess
import sys

import pandas
import pytest

import kvexp
from kvexp import cli
from tests.helpers.recorded_rows import curve, refused, sweep


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = curve({1: 2.0, 64: 3.0}, impl_options='{"num_warps":4}', host_us=None)
    two = [refused("skipped", "no, never", impl="torch", bytes_moved=2**53 + 1)]
    return sweep(tmp_path / "multirun" / "2026-11-21" / "10-00", [one, two])


def test_a_frame_has_a_row_for_each_point_and_the_columns_of_a_row(folder):
    frame = kvexp.load(folder)
    assert list(frame.columns[:2]) == ["sweep", "command"]
    assert frame.latency_us[:2].tolist() == [2.0, 3.0]
    assert frame.latency_us.isna().tolist() == [False, False, True]
    assert frame.impl_num_warps[:2].tolist() == [4, 4]
    assert frame.timer_min_samples.tolist() == [20, 20, 20]
    assert set(frame.sweep) == {"2026-11-21/10-00"}


def test_whole_numbers_stay_whole_where_some_are_missing(folder):
    frame = kvexp.load(folder)
    assert frame.bytes_moved[2] == 2**53 + 1
    assert str(frame.impl_num_warps.dtype) == "Int64"
    assert str(frame.host_us.dtype) == "float64"


def test_the_last_sweep_is_the_default(folder):
    assert len(kvexp.load()) == 3


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_file_holds_every_point_and_column(folder, kind, capsys):
    assert cli.dispatch(["export", str(folder), "--output", f"out/points.{kind}"]) == 0
    assert capsys.readouterr().out == f"out/points.{kind}\n"
    read = getattr(pandas, f"read_{kind}")(f"out/points.{kind}")
    expected = kvexp.load(folder)
    assert list(read.columns) == list(expected.columns)
    assert read.reason[2] == "no, never"
    assert read.latency_us[:2].tolist() == [2.0, 3.0]
    assert read.bytes_moved[0] == 1000


def test_stdout_takes_text(folder, capsys):
    assert cli.dispatch(["export", "--format", "json"]) == 0
    assert [point["num_tokens"] for point in json.loads(capsys.readouterr().out)] == [1, 64, 64]
    assert cli.dispatch(["export"]) == 0
    assert capsys.readouterr().out.startswith("sweep,command,status,reason,latency_us,")


def test_options_of_two_kinds_become_words(tmp_path):
    curves = [
        curve({1: 1.0}, impl=impl, impl_options=f'{{"tile":{tile}}}')
        for impl, tile in (("a", 1), ("b", '"x"'))
    ]
    frame = kvexp.load(sweep(tmp_path / "s" / "1", curves))
    assert frame.impl_tile.tolist() == ["1", "x"]


def test_a_format_that_is_not_clear_is_refused(folder, capsys):
    assert cli.dispatch(["export", "--output", "points.xls"]) == 2
    assert "points.xls names no format" in capsys.readouterr().err
    assert cli.dispatch(["export", "--format", "parquet"]) == 2
    assert "is binary; name a file with --output" in capsys.readouterr().err


def test_loading_imports_neither_torch_nor_mlflow(folder):
    code = "import sys, kvexp; kvexp.load(); print({'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
