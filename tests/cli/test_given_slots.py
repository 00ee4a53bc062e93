"""A batch, or a file of slots, gives the points of a curve and where they are written."""

import json

import pytest

from kvexp.errors import ConfigError
from kvexp.experiment import Experiment
from kvexp.results.point_identity import CASE
from kvexp.results.repeat_command import derive_overrides
from tests.helpers.cheap_compose import set_keys

SLOTS = [3, -1, 17, 40]


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of slots in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.json").write_text(json.dumps(SLOTS))


def case_of(experiment):
    (case,) = experiment.cases()
    return case


def identity(case):
    return [getattr(case, column) for column in CASE]


def test_a_batch_is_one_point_of_all_its_new_tokens():
    case = case_of(set_keys("workload=tiny", "workload.batch=8q1s1024_2q2048s2048"))
    assert (case.num_tokens, case.slots, case.batch) == (8 + 2 * 2048, "batch", "8q1s1k_2q2k")


@pytest.mark.usefixtures("file")
def test_a_files_content_is_the_identity_and_travels_to_the_process_that_measures(tmp_path):
    experiment = set_keys("workload=tiny", "workload.slots=s.json")
    case = case_of(Experiment.from_json(experiment.to_json()))
    assert case.recorded == tuple(SLOTS)
    assert (case.num_tokens, case.written_tokens, case.padding_at) == (4, 3, "scattered")
    assert "recorded" not in case.columns()
    (tmp_path / "again.json").write_text(json.dumps(SLOTS, indent=1))
    (tmp_path / "other.json").write_text("[3, -1, 17, 41]")
    again, other = (
        case_of(set_keys("workload=tiny", f"workload.slots={name}.json")) for name in ("again", "other")
    )
    assert identity(again) == identity(case) != identity(other)


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize("key", ["num_tokens=4", "padding=0.25", "padding_at=end", "batch=q4"])
def test_what_a_file_gives_cannot_be_typed_beside_it(key):
    with pytest.raises(ConfigError, match="is refused beside workload"):
        set_keys("workload=tiny", "workload.slots=s.json", f"workload.{key}")


@pytest.mark.usefixtures("file")
def test_a_slot_that_the_cache_lacks_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match=r"s.json has slot 40, and the cache has 32"):
        set_keys("workload=tiny", "workload.slots=s.json", "workload.num_blocks=2")


@pytest.mark.usefixtures("file")
def test_rows_of_a_batch_can_be_repeated_and_those_of_a_file_cannot_without_it():
    batch, recorded = (
        case_of(set_keys("workload=tiny", "impl=torch", word)).columns() | {"device": "cpu"}
        for word in ("workload.batch=2q3", "workload.slots=s.json")
    )
    assert "workload.batch='2q3'" in derive_overrides([batch])
    assert not [word for word in derive_overrides([batch]) if "num_tokens" in word or "slots" in word]
    assert derive_overrides([recorded]) is None
