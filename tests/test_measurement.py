import json
from dataclasses import fields
from pathlib import Path

import pytest

from kvexp.case import Case
from kvexp.measurement import SCHEMA, STATUSES, Measurement, Statistics
from kvexp.results.row_file import RowFile, read
from tests.helpers import compose, interface

LATENCY = Statistics(2.0, 1.9, 2.2, 1.5, 2.5, 1.0, 2.1, 0.3, 20)
ENVIRONMENT = {"device_name": "a GPU", "sm_count": 132}
COLUMNS = json.loads(Path(__file__).with_name(interface.FILE).read_text("utf-8"))["columns"]


@pytest.fixture
def case():
    made = compose.experiment("workload=tiny", "workload.num_tokens=16", "impl=torch")
    return next(made.resolve("cpu").cases())


def measurement(case, status):
    if status == "ok":
        return Measurement(
            case, status, statistics=LATENCY, bytes_moved=8000, copy_us=1.5, environment=ENVIRONMENT
        )
    return Measurement(case, status, "it is so", environment=ENVIRONMENT)


@pytest.mark.parametrize("status", STATUSES)
def test_a_row_has_these_columns_whatever_the_outcome(case, status):
    row = measurement(case, status).row()
    assert list(row) == COLUMNS
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["status"], row["schema"]) == (status, SCHEMA)


def test_every_field_of_a_case_is_a_column():
    others = {field.name for field in fields(Case)} - set(COLUMNS)
    assert others == {"recorded"}  # whose hash is one


def test_a_row_says_why_its_layout():
    made = compose.experiment("workload=tiny", "impl=torch", "layout=auto", "connector=nixl")
    row = measurement(next(made.resolve("cpu").cases()), "skipped").row()
    assert (row["layout"], row["layout_reason"]) == ("HND", "connector=nixl asks for HND")


def test_a_reason_that_names_a_file_whatever_its_bytes_can_be_read_back(case, tmp_path):
    row = Measurement(case, "failed", "no file \udcff").row()
    RowFile(tmp_path).append(row)
    assert read(tmp_path) == [row]
    assert row["reason"] == "no file ?"


def test_an_ok_row_has_numbers_derived_from_its_median(case):
    row = measurement(case, "ok").row()
    assert (row["latency_us"], row["gb_per_s"], row["copy_fraction"]) == (2.0, 4.0, 0.75)
    assert row["reason"] == ""


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "ok"])
def test_only_ok_has_a_latency_and_the_others_a_reason(case, status):
    row = measurement(case, status).row()
    assert row["reason"] == "it is so"
    numbers = ("latency_us", "latency_us_min", "samples", "gb_per_s", "copy_fraction", "host_us")
    assert [row[column] for column in numbers] == [None] * 6
    with pytest.raises(ValueError, match="a latency exclude"):
        Measurement(case, status, "it is so", LATENCY)
    with pytest.raises(ValueError, match="with the reason ''"):
        Measurement(case, status)


def test_an_ok_row_without_a_latency_cannot_be_made(case):
    with pytest.raises(ValueError, match="a latency exclude"):
        Measurement(case, "ok")


def test_an_ok_row_with_a_reason_cannot_be_made(case):
    with pytest.raises(ValueError, match="with the reason 'but'"):
        Measurement(case, "ok", "but", LATENCY)


def test_what_is_unknown_gives_no_derived_number(case):
    row = Measurement(case, "ok", statistics=LATENCY).row()
    assert (row["gb_per_s"], row["copy_fraction"], row["bytes_moved"]) == (None, None, None)
