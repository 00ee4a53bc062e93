"""layout=auto on the command line: what is typed wins, and each curve says why it has its layout."""

import pytest

from kvexp.layout.selection import FLASHINFERS, OURS, VLLMS
from tests.helpers import compose
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

CHOSEN = "chosen by name"


@pytest.fixture
def layouts(typed):
    """The layout and the reason of each curve that was typed."""

    def found(*line):
        outcome = typed(*line)
        assert (outcome.code, outcome.err) == (0, "")
        made = [job.experiment for job in outcome.jobs]
        for experiment in made:
            assert {case.layout for case in experiment.cases()} == {experiment.layout.name}
            assert {case.layout_reason for case in experiment.cases()} == {experiment.layout_reason}
            same = compose.choice("layout", experiment.layout.name)
            assert (experiment.layout.target, experiment.layout.options) == (same.target, same.options)
        return [(experiment.layout.name, experiment.layout_reason) for experiment in made]

    return found


@pytest.mark.parametrize("value", ["HND_packed", "nonsense", ""])
def test_a_layout_that_is_typed_is_never_overruled(layouts, monkeypatch, value):
    monkeypatch.setenv(OURS, value)
    monkeypatch.setenv(VLLMS, value)
    monkeypatch.setenv(FLASHINFERS, value)
    assert layouts("layout=NHD,BHLNC", "connector=mooncake") == [("NHD", CHOSEN), ("BHLNC", CHOSEN)]


def test_neither_is_the_layout_of_an_op_s_yaml(layouts, monkeypatch):
    monkeypatch.setenv(OURS, "HND")
    found = layouts(f"op={FLASH},{DIFFKV},{PAGED}", "connector=nixl")
    assert found == [("NHD", CHOSEN), ("NHD_packed", CHOSEN), ("head_major", CHOSEN)]


def test_auto_asks_the_environment_and_then_the_connector(layouts, monkeypatch):
    asked = ("layout=auto", "connector=nixl")
    assert layouts(*asked) == [("HND", "connector=nixl asks for HND")]
    monkeypatch.setenv(VLLMS, "LBNHC")
    monkeypatch.setenv(OURS, "HND_packed")
    assert layouts(*asked) == [("HND_packed", "KVEXP_KV_CACHE_LAYOUT=HND_packed")]


def test_auto_is_asked_for_each_curve(layouts):
    found = layouts("layout=auto", f"op={FLASH},{DIFFKV},{PAGED}", "connector=nixl")
    wish = "connector=nixl asks for HND"
    assert found == [
        ("HND", wish),
        ("HND_packed", f"{wish}; HND_packed is what {DIFFKV} writes for HND"),
        ("head_major", f"{wish}; head_major is what {PAGED} writes for HND"),
    ]


def test_auto_beside_a_layout_and_connectors_with_and_without_a_wish(layouts):
    found = layouts("layout=auto", "connector=lmcache,mooncake")
    assert [layout for layout, _ in found] == ["NHD", "HND"]


def test_a_variable_that_names_no_layout_is_one_sentence_and_nothing_on_disk(typed, monkeypatch):
    monkeypatch.setenv(VLLMS, "[bold]")
    outcome = typed("layout=auto", "impl=torch")
    assert (outcome.code, outcome.out, list(outcome.jobs), outcome.folders) == (2, "", [], [])
    assert outcome.err.startswith(f"kvexp: {VLLMS}=[bold] ")
    assert outcome.err.count("\n") == 1
    assert "it can be NHD, HND" in outcome.err


def test_a_connector_of_the_users_own_may_wish_and_its_layout_may_be_theirs(typed, write_own):
    write_own("connector/mine", "# Mine.\nlayout: sideways\n")
    write_own("layout/sideways", "# Mine.\n_target_: my_package.Sideways\nturns: 3\n")
    (job,) = typed("layout=auto", "connector=mine", "--config-dir", "my").jobs
    layout = job.experiment.layout
    assert (layout.name, layout.target, layout.options) == ("sideways", "my_package.Sideways", {"turns": 3})
    assert job.experiment.layout_reason == "connector=mine asks for sideways"


def test_a_connector_s_layout_that_is_not_there_is_one_sentence(typed, write_own):
    write_own("connector/mine", "# Mine.\nlayout: sideways\n")
    outcome = typed("layout=auto", "connector=mine", "--config-dir", "my")
    assert outcome.code == 2
    assert outcome.err == (
        "kvexp: layout=auto means sideways (connector=mine asks for sideways), which has no YAML\n"
    )
