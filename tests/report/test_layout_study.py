"""The study of layouts runs on any CPU, and its page answers in its first lines."""

import pytest

from kvexp import cli
from kvexp.report.content import build_content
from kvexp.results import load
from kvexp.results.row_file import read

TYPED = [
    *("experiment=layout_study", "workload=tiny", "impl=torch", "device=cpu", "repeat=1", "tracking=none"),
    *("timer.max_seconds=0.01", "timer.min_samples=3", "hydra.sweep.dir=study", "isolation=inline"),
]


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The folder of a sweep on a CPU, with its page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("study"))
        assert cli.dispatch(TYPED) == 0
        assert cli.dispatch(["report", "study"]) == 0
        yield tmp_path_factory.getbasetemp() / "study0" / "study"


def test_it_measures_six_layouts_of_three_ops(study):
    rows = [row for file in study.glob("*/rows.jsonl") for row in read(file)]
    assert len({(row["op"], row["layout"]) for row in rows if row["status"] == "ok"}) == 18
    assert {row["status"] for row in rows} == {"ok", "skipped"}
    assert {row["num_layers"] for row in rows} == {8}


def test_its_page_begins_with_what_each_layout_costs(study):
    lines = [
        line for line in (study / "report.md").read_text("utf-8").splitlines() if line.startswith("- **")
    ]
    assert lines[0].startswith(
        "- **Control**: NHD against NHD takes repeat=4 or more; this was measured in one"
    )
    assert [line.split("**")[1] for line in lines[1:8]] == [
        "To write a step of 8 tokens, by torch",
        "To write a step of 32 tokens, by torch",
        "To read a step: 8 sequences of 16 tokens, by torch",
        "To hand 8 tokens to a rank of another size (TP 1 to 2, to=device), by torch",
        "To hand 32 tokens to a rank of another size (TP 1 to 2, to=device), by torch",
        "Without disaggregation",
        "With disaggregation",
    ]
    assert "BHLNC" in lines[1]
    page = (study / "report.html").read_text("utf-8")
    # What the answer is depends on what else runs here.
    title = build_content(load.read([study], study)).title
    assert title
    assert f"<h1>{title}</h1>" in page


def test_its_page_has_the_cost_of_pieces(study):
    text = (study / "report.md").read_text("utf-8")
    assert "| transfer torch | 12 | " in text
    assert "What a copy in pieces costs" in (study / "report.html").read_text("utf-8")
