"""Which sweep below multirun/ began last, whatever its folder is called."""

import json
import os

import pytest

from kvexp.host import file_lock
from kvexp.results import sweep_dir
from kvexp.results.conf_files import complete_columns
from tests.helpers.recorded_rows import row, sweep

LATER = "2026-01-02/10-00-00-000002"


@pytest.fixture
def dated(tmp_path):
    """Three sweeps with rows, named by when they began, and a folder in which none did."""
    for name in ("2026-01-02/10-00-00-000001", LATER, "2025-12-31/23-59-59-1"):
        sweep(tmp_path / name, [[row()]])
    (tmp_path / "2026-01-03" / "00-00-00-000000").mkdir(parents=True)
    return tmp_path


def test_before_the_first_sweep_there_is_no_last_one(tmp_path):
    assert sweep_dir.find_last(tmp_path / "multirun") is None


def test_dated_sweeps_without_a_record_are_ordered_by_name(dated):
    assert sweep_dir.find_last(dated) == dated / LATER


def test_a_named_sweep_is_the_last_when_it_began_last(dated):
    sweep_dir.write_command(dated / LATER, ["impl=torch"], [])
    named = sweep(dated / "a_name", [[row()], [row()]])
    sweep_dir.write_command(named, ["impl=torch"], [])
    assert sweep_dir.find_last(dated) == sweep_dir.find_last(dated, with_rows=True) == named
    newer = sweep(dated / "2026-01-04" / "10-00-00-0", [[row()]])
    sweep_dir.write_command(newer, ["impl=torch"], [])
    assert sweep_dir.find_last(dated) == newer


def test_copying_or_writing_to_a_sweep_does_not_change_when_it_began(dated):
    named = sweep(dated / "zz", [[row()]])
    sweep_dir.write_command(named, ["impl=torch"], [])
    sweep_dir.write_command(dated / LATER, ["impl=torch"], [])
    sweep_dir.write_command(named, ["impl=triton"], [])  # resumed: what it was begun with stays
    (named / "report.html").write_text("")
    for path in (named / sweep_dir.COMMAND, named):
        os.utime(path, (4e9, 4e9))
    assert sweep_dir.find_last(dated) == dated / LATER


@pytest.mark.parametrize(
    "record", [None, "{}", "[]", "no JSON", '{"started_at": 5}', '{"started_at": "soon"}']
)
def test_without_a_record_a_named_one_is_as_old_as_its_folder(dated, record):
    named = sweep(dated / "a_name", [[row()]])
    if record:
        (named / sweep_dir.COMMAND).write_text(record)
    file = named / sweep_dir.COMMAND if record else named
    os.utime(file, (4e9, 4e9))
    assert sweep_dir.find_last(dated) == named
    os.utime(file, (1, 1))
    assert sweep_dir.find_last(dated) == dated / LATER


def test_a_sweep_without_rows_is_the_last_unless_rows_are_required(dated):
    begun = dated / "begun"
    begun.mkdir()
    sweep_dir.write_command(begun, ["impl=torch"], [])
    assert sweep_dir.find_last(dated) == begun
    assert sweep_dir.find_last(dated, with_rows=True) == dated / LATER


def test_the_command_that_is_read_back_is_the_one_that_was_typed(tmp_path):
    sweep_dir.write_command(tmp_path, ["impl=torch"], ["--config-dir=mine"])
    assert sweep_dir.read_command(tmp_path) == (["impl=torch"], ["--config-dir=mine"])
    assert set(json.loads((tmp_path / sweep_dir.COMMAND).read_text())) == {
        *("overrides", "flags", "started_at", "id"),
    }


def test_two_sweeps_of_one_name_have_ids_of_their_own_and_keep_them(tmp_path):
    homes = [tmp_path / checkout / "multirun" / "nightly" for checkout in "ab"]
    for home in homes:
        home.mkdir(parents=True)
        sweep_dir.write_command(home, ["impl=torch"], [])
    ids = [sweep_dir.id_of(home) for home in homes]
    assert ids[0] != ids[1]
    assert all(map(sweep_dir.is_id, ids))
    sweep(homes[0], [[row()]])
    sweep_dir.write_command(homes[0], ["impl=torch"], [])  # resumed
    assert [sweep_dir.id_of(home) for home in homes] == ids
    assert {sweep_dir.name_of(home) for home in homes} == {"multirun/nightly"}


def test_a_folder_is_held_once_whatever_its_path(tmp_path):
    (tmp_path / "here").mkdir()
    with sweep_dir.hold(tmp_path / "here"), sweep_dir.hold(tmp_path / "here" / ".." / "here"):
        assert file_lock.find_holder(tmp_path / "here" / ".lock") == f"process {os.getpid()}"
    assert file_lock.find_holder(tmp_path / "here" / ".lock") is None


def test_a_right_row_counts_when_it_is_of_the_last_attempt(tmp_path):
    right, other = row(impl_hash="a"), row(impl_hash="a", num_tokens=4)
    again = other | {"status": "failed", "impl_hash": None}  # its process died while it was looked for
    sweep(tmp_path, [[right, other], [again]])
    assert list(sweep_dir.read_right_rows(tmp_path)[1].values()) == [complete_columns(right)]


@pytest.mark.parametrize("record", [None, "{}", "[]", '{"id": 5}', """{"id": "' or 1"}"""])
def test_a_sweep_that_began_without_an_id_has_its_name_for_one_even_when_resumed(tmp_path, record):
    home = sweep(tmp_path / LATER, [[row()]])
    if record:
        (home / sweep_dir.COMMAND).write_text(record)
    sweep_dir.write_command(home, ["impl=torch"], [])
    assert sweep_dir.id_of(home) == LATER
