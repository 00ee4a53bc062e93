import json
import os
from pathlib import Path

import pytest

from kvexp.case import DEFAULTS
from kvexp.errors import KvexpError
from kvexp.measurement import SCHEMA
from kvexp.results.conf_files import read_option
from kvexp.results.labels import read_options
from kvexp.results.row_file import RowFile, make_folder, read


def row(**columns):
    return {"status": "ok", "latency_us": 1.0, "num_tokens": 2, "schema": SCHEMA} | DEFAULTS | columns


@pytest.fixture
def torn():
    return []


def test_an_appended_row_is_read_back_as_it_was(tmp_path):
    written = row(latency_us=1.25, reason="µs \u2028 [bold]", copy_us=None)
    RowFile(tmp_path).append(written)
    assert read(tmp_path / "rows.jsonl") == [written]


def test_a_row_of_before_a_key_was_there_has_what_was_done_then(tmp_path):
    before = row(num_heads=8, slots="contiguous")
    for key in ("tp_from", "tp_to", "seed"):
        del before[key]
    RowFile(tmp_path).append(before)
    (found,) = read(tmp_path)
    assert found == before | {"tp_from": 1, "tp_to": 2, "seed": 0}


@pytest.mark.parametrize(
    ("impl", "held", "expected"),
    [
        ("cuda", '{"software_fp8":true,"unroll":4}', {"software_fp8": True, "unroll": 4, "sms": None}),
        ("mine", '{"unroll":4}', {"unroll": 4}),
        ("cuda", '{"tiles":4}', {"tiles": 4}),
        ("torch", "", {}),
    ],
)
def test_a_row_of_before_an_option_was_there_has_what_it_was_then(tmp_path, impl, held, expected):
    RowFile(tmp_path).append(row(impl=impl, impl_options=held))
    (found,) = read(tmp_path)
    options = read_options(found, "impl")
    assert options.items() >= expected.items()
    assert set(options) == (set(read_option("impl", "cuda")) if "sms" in expected else set(expected))


def test_samples_are_a_line_beside_the_row(tmp_path):
    RowFile(tmp_path).append(row(num_tokens=8), samples_us=(1.5, 2.5))
    line = (tmp_path / "samples.jsonl").read_text()
    assert json.loads(line) == {"num_tokens": 8, "samples_us": [1.5, 2.5]}
    assert line.endswith("\n")


@pytest.fixture
def synced(monkeypatch):
    """What os.fsync was asked for: each file's path and bytes, each folder's path and its files' names."""
    asked, sync = [], os.fsync

    def fsync(handle):
        sync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        asked.append((path, sorted(os.listdir(path)) if path.is_dir() else path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    return asked


def test_a_row_and_its_samples_are_on_the_disk_when_they_were_appended(tmp_path, synced):
    """Of a file that was not synced, a power loss takes the lines; of a folder, the files' names."""
    file = RowFile(tmp_path)
    for tokens in (2, 4):
        file.append(row(num_tokens=tokens), samples_us=[1.5])
        on_disk = dict(synced)  # as each was when it was synced last
        for name in ("rows.jsonl", "samples.jsonl"):
            assert on_disk[tmp_path / name] == (tmp_path / name).read_bytes()
            assert on_disk[tmp_path / name].count(b"\n") == tokens // 2
        assert on_disk[tmp_path] == ["rows.jsonl", "samples.jsonl"]


def test_samples_are_on_the_disk_before_their_row(tmp_path, synced):
    RowFile(tmp_path).append(row(), samples_us=[1.5])
    files = [path.name for path, _ in synced if path != tmp_path]
    assert files == ["samples.jsonl", "rows.jsonl"]


def test_a_row_without_samples_makes_no_samples_file(tmp_path):
    RowFile(tmp_path).append(row(status="skipped"))
    assert not (tmp_path / "samples.jsonl").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_json_has_not_is_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(ValueError, match="JSON compliant"):
        RowFile(tmp_path).append(row(latency_us=bad), samples_us=[1.0])
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_left_out_and_reported(tmp_path, torn):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row()) + '\n{"status": "o')
    assert read(tmp_path, torn.append) == [row()]
    assert torn == [f"{file}, line 2: the last line is not whole and was left out"]


@pytest.mark.parametrize("line", ["text", "", '{"status": "o', "\0\0"])
def test_a_last_line_that_ends_and_is_no_row_was_not_torn(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row()) + f"\n{line}\n")
    with pytest.raises(KvexpError, match=r"rows\.jsonl, line 2: not JSON"):
        read(tmp_path)


def test_a_whole_last_line_without_its_newline_is_a_row(tmp_path, torn):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row()))
    assert read(tmp_path, torn.append) == [row()]
    assert torn == []


def test_appending_behind_a_torn_line_loses_no_row(tmp_path, torn):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row()) + '\n{"status": "o')
    RowFile(tmp_path).append(row(num_tokens=4))
    assert read(tmp_path, torn.append) == [row(), row(num_tokens=4)]
    assert torn == []


def test_appending_behind_a_line_without_its_newline_loses_no_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row()))
    RowFile(tmp_path).append(row(num_tokens=4))
    assert read(tmp_path) == [row(), row(num_tokens=4)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 1: not JSON"),
        ('{"latency_us": NaN}', "line 1: not JSON .NaN"),
        ("[1]", "line 1: a row is a JSON object"),
        ('{"schema": 99}', "line 1: schema 99, but this kvexp reads schema 1"),
        ("{}", "line 1: schema None"),
    ],
)
def test_a_line_that_is_no_row_is_named_in_one_sentence(tmp_path, line, complaint):
    (tmp_path / "rows.jsonl").write_text(f"{line}\n{json.dumps(row())}\n")
    with pytest.raises(KvexpError, match=complaint) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"status": "great"}, "status 'great' is none of ok, verified, skipped, incorrect, failed"),
        ({"status": ["ok"]}, "is none of ok"),
        ({"num_tokens": "2"}, "num_tokens cannot be '2'"),
        ({"num_tokens": True}, "num_tokens cannot be True"),
        ({"latency_us": "fast"}, "latency_us cannot be 'fast'"),
        ({"latency_us": None}, "latency_us of an ok row cannot be None"),
        ({"latency_us": 0.0}, "latency_us of an ok row cannot be 0.0"),
        ({"latency_us": -5}, "latency_us of an ok row cannot be -5"),
        ({"copy_us": 0}, "copy_us of an ok row cannot be 0"),
        ({"timer_options": "[1"}, "timer_options must be a JSON object, not '[1'"),
        ({"impl_options": "7"}, "impl_options must be a JSON object, not '7'"),
        ({"impl": None}, "impl cannot be None"),
        ({"surprise": {"nested": 1}}, "surprise must be one value"),
        ({"num_tokens": 0}, "num_tokens cannot be 0; it must be at least 1"),
        ({"num_tokens": -2}, "num_tokens cannot be -2; it must be at least 1"),
        ({"num_heads": 10**30}, f"num_heads cannot be {10**30}; it must be at most 2147483647"),
        ({"seed": 2**70}, f"seed cannot be {2**70}; it must be at most {2**63 - 1}"),
        ({"latency_us": 10**400}, "latency_us cannot be 1000"),
        ({"latency_us": 1e-300}, "latency_us cannot be 1e-300; it must be at least 1e-09"),
        ({"latency_us_low": 0}, "latency_us_low of an ok row cannot be 0"),
        ({"copy_fraction": 0.0}, "copy_fraction of an ok row cannot be 0.0"),
        ({"gb_per_s": 1.7e308}, "gb_per_s cannot be 1.7e+308; it must be at most 1e+15"),
        ({"padding": 1.0}, "padding cannot be 1.0; it must be a number from 0 to less than 1"),
        ({"slots": "sorted"}, "slots cannot be 'sorted'; it must be random, contiguous, reversed, decode, "),
        ({"scale": "a\nb"}, r"scale cannot be 'a\nb'; it must be a text of one line"),
        ({"throttled": 5}, "throttled cannot be 5; it must be a text"),
        ({"other_processes": "many"}, "other_processes cannot be 'many'; it must be a whole number"),
        ({"git_dirty": 1}, "git_dirty cannot be 1; it must be true or false"),
        ({"started_at": "noon"}, "started_at cannot be 'noon'; it must be a time in ISO 8601"),
        ({"reason": "\ud800"}, r"reason cannot be '\ud800'; it must be a text without lone surrogates"),
        ({"surprise": 10**30}, f"surprise cannot be {10**30}; it must be a number of 64 bits"),
        ({"surprise": "\ud800"}, r"surprise cannot be '\ud800'; it must be a text without lone surrogates"),
        ({"\ud800": 1}, r"no column is called '\ud800'"),
        ({"impl_options": '{"tile": 1e999}'}, "impl_options: tile cannot be inf; it must be a finite number"),
        ({"impl_options": '{"tile": [1]}'}, "impl_options: tile must be one value, not [1]"),
        ({"timer_options": '{"cache": NaN}'}, "timer_options must be a JSON object, not"),
        ({"repetition": 0}, "repetition cannot be 0; it must be at least 1"),
        ({"schema": True}, "schema cannot be True; it must be a whole number"),
        ({"status": "skipped"}, "a row names its reason, and this one does not"),
    ],
)
def test_a_column_that_no_row_can_have_is_named_in_one_sentence(tmp_path, columns, complaint):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row(**columns)) + "\n")
    with pytest.raises(KvexpError, match="line 1: ") as raised:
        read(tmp_path)
    assert complaint in str(raised.value)


@pytest.mark.parametrize("column", ["latency_us", "host_us", "setup_s", "num_tokens", "cpu_threads", "mine"])
@pytest.mark.parametrize("number", ["4e700", "1e999", "-1e999", "1.8e308", "1" * 400])
def test_a_number_that_no_float_or_int64_holds_is_refused_in_any_column(tmp_path, column, number):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row(**{column: "HERE"})).replace('"HERE"', number) + "\n")
    with pytest.raises(KvexpError, match=f"line 1: {column} .*cannot be "):
        read(tmp_path)


def test_a_torn_line_is_cut_off_with_a_word_when_its_file_is_continued(tmp_path, torn):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row()) + '\n{"status": "o')
    RowFile(tmp_path, torn.append)
    assert torn == [f"{tmp_path / 'rows.jsonl'}, line 2: the last line is not whole and was left out"]


def test_jobs_are_read_in_numeric_order(tmp_path):
    for job in (10, 9, 0):
        RowFile(tmp_path / str(job)).append(row(seed=job))
    assert [r["seed"] for r in read(tmp_path)] == [0, 9, 10]


def test_a_folder_without_rows_has_none_and_a_missing_path_is_an_error(tmp_path):
    assert read(tmp_path) == []
    with pytest.raises(KvexpError, match="does not exist"):
        read(tmp_path / "missing")


def test_a_folder_that_cannot_be_made_says_what_is_in_its_way(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KvexpError, match=r"cannot make the folder .*/file/a/b: .*/file is a file"):
        make_folder(tmp_path / "file" / "a" / "b")
    with pytest.raises(KvexpError, match=r"cannot make the folder .*/file: .*/file is a file"):
        make_folder(tmp_path / "file")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(KvexpError, match=r"the folder .* cannot be written to"):
        make_folder(tmp_path)
