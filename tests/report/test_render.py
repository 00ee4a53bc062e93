"""The HTML page and the Markdown are complete: they need no other file and leave no point out."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from kvexp import cli
from kvexp.report.content import build_content
from kvexp.report.curves import group_by_machine
from kvexp.report.embed import draw_figures
from kvexp.report.render import render_html
from tests.helpers.recorded_rows import curve, refused, sweep


class Read(HTMLParser):
    """Parses a page as a browser would: its tags, ids, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag("meta", attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def report(*curves):
    """The content of a report on the curves of one sweep, and its page."""
    content = build_content([row | {"sweep": "s", "command": ""} for rows in curves for row in rows])
    return content, render_html(content, draw_figures(content))


CURVES = [
    curve({1: 2.0, 64: 3.0, 512: 10.0}, impl="cuda"),
    curve({1: 2.0, 64: 4.0, 512: 11.0}, impl="triton"),
    [refused("skipped", "needs <another> GPU | really", impl="torch")],
    [refused("incorrect", "wrong bytes\nin key_cache[3]", impl="bad")],
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return sweep(tmp_path / "multirun" / "2026-11-21" / "10-00", CURVES)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The folder of a sweep with its report."""
    home = tmp_path_factory.mktemp("reported")
    made = sweep(home / "multirun" / "2026-11-21" / "10-00", CURVES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert cli.dispatch(["report"]) == 0
    return made


@pytest.fixture(scope="module")
def page(reported):
    return (reported / "report.html").read_text("utf-8")


def test_the_page_is_well_formed_and_every_id_is_unique(page):
    read = Read(page)
    assert len(read.ids) == len(set(read.ids))
    assert len(re.findall("<svg", page)) == 3


def test_the_page_loads_nothing_over_a_network(page):
    addresses = [value for name, value in Read(page).attributes if name in ("src", "href", "xlink:href")]
    assert all(address.startswith("#") for address in addresses)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_reference_in_a_figure_has_its_target(page):
    read = Read(page)
    used = [value[1:] for name, value in read.attributes if name == "xlink:href"]
    used += re.findall(r"url\(#([^)]+)\)", page)
    assert used
    assert set(used) <= set(read.ids)


def test_the_page_takes_the_colours_of_its_theme(page):
    assert "stroke: var(--c0)" in page
    assert "#0072b2" not in page[page.index("<svg") : page.rindex("</svg>")]
    assert "prefers-color-scheme: dark" in page


def test_the_page_has_the_findings_refusals_and_wrong_points(page):
    text = " ".join(" ".join(Read(page).words).split())
    assert "NVIDIA H200, host h, driver 580.1" in text
    assert "cuda is fastest from 64 to 512 tokens, 1.10 to 1.33 times as fast as triton" in text
    assert "6 ok, 1 skipped and 1 incorrect" in text
    assert "needs <another> GPU | really" in text
    assert text.index("wrong bytes in key_cache[3]") < text.index("cuda is fastest")
    assert "python -m kvexp impl=triton 'workload.num_tokens=[1,2]'" in text


def test_pointing_at_a_figure_names_every_line_fastest_first(page):
    ratio, latency, copied = [
        json.loads(value) for name, value in Read(page).attributes if name == "data-hover"
    ]
    assert [size["size"] for size in latency] == ["1", "64", "512"]
    assert latency[1]["lines"] == [["cuda", 0, "3.00 µs (2.99–3.01)"], ["triton", 1, "4.00 µs (3.99–4.01)"]]
    assert ratio[1]["lines"] == [["cuda", 0, "1.00 (1.00–1.00)"], ["triton", 1, "1.33 (1.33–1.34)"]]
    assert copied[1]["lines"][0] == ["cuda", 0, "167 %"]
    assert latency[0]["x"] < latency[1]["x"] < latency[2]["x"]


def test_the_markdown_has_the_same_points_in_well_formed_tables(reported):
    text = (reported / "report.md").read_text("utf-8")
    assert "**incorrect**: bad" in text
    assert "| 64 | **3.00** (2.99–3.01, 167 %) | 4.00 (3.99–4.01, 125 %) |" in text
    assert "| all | (1.00) | 1.33 | 1.10 |" in text
    assert "needs &lt;another> GPU \\| really" in text
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            assert lines[number - 1].count("|") == line.count("|") == lines[number + 1].count("|")


def test_two_machines_have_a_section_each_and_share_no_figure():
    curves = [curve({8: 1.0}), curve({8: 2.0}, device_name="NVIDIA H100", impl="triton")]
    content, page = report(*curves)
    assert [section.name.partition(",")[0] for section in content.sections] == ["NVIDIA H200", "NVIDIA H100"]
    assert [len(panel.series) for section in content.sections for panel, _ in section.panels] == [1, 1]
    assert content.sections[0].findings == ()
    Read(page)


def test_a_sweep_without_a_latency_still_has_a_page():
    _, text = report([refused("skipped", "no GPU")])
    Read(text)
    assert "Nothing was timed" in text
    assert "no GPU" in text


def test_the_machines_state_is_given_by_curve_from_least_to_most_and_rounded():
    hot = curve({1: 1.0, 2: 1.0}, power_w=400.4, throttled="sw_power_cap", setup_s=0.123456)
    hot[1]["power_w"] = 512.6
    content, _ = report(hot, curve({2: 2.0}, layout="HND", power_w=300.2, setup_s=2.0))
    (section,) = content.sections
    assert section.state.columns == ("power_w", "throttled")
    assert section.state.lines == (("NHD", ("400–513", "sw_power_cap")), ("HND", ("300", "–")))
    assert section.facts["setup_s"] == "0.123 to 2.00"
    assert not {"latency_us", "power_w"} & set(section.facts)


def test_figures_are_files_that_the_markdown_shows(folder, tmp_path, capsys):
    assert cli.dispatch(["report", str(folder), "--output", "out", "--figures", "out/figures"]) == 0
    assert capsys.readouterr().out == "out/report.html\nout/report.md\n"
    names = sorted(file.name for file in (tmp_path / "out" / "figures").iterdir())
    assert names == [
        f"machine1-{name}.{kind}"
        for name in ("impl-cuda-against-triton", "panel1-copy", "panel1-latency", "panel1-ratio")
        for kind in ("png", "svg")
    ]
    for file in (tmp_path / "out" / "figures").glob("*.svg"):
        ElementTree.parse(file)
    assert "](figures/machine1-panel1-latency.svg)" in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_what_cannot_be_written_is_one_sentence(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.dispatch(["report", "--output", "file"]) == 2
    assert capsys.readouterr().err == "kvexp: cannot make the folder file: file is a file\n"
    assert cli.dispatch(["report", "--nonsense"]) == 2
    assert "report: unrecognized arguments: --nonsense" in capsys.readouterr().err


def test_names_are_escaped_in_the_page_and_in_figures():
    curves = [curve({8: 1.0, 9: 1.0}, impl=impl) for impl in ("$x$<b>", "a|b")]
    _, text = report(*curves)
    assert "<b>" not in text[text.index("<svg") : text.rindex("</svg>")]
    assert "".join(Read(text).words).count("$x$<b>") > 2


def test_twenty_lines_and_single_points_are_drawn():
    curves = [curve({8: 1.0 + number}, impl=f"i{number}") for number in range(20)]
    assert len(re.findall("<svg", report(*curves)[1])) == 9


@pytest.mark.parametrize(
    ("other", "drawn_too"), [({"impl": "triton"}, True), ({"timer": "wall_clock"}, False)]
)
def test_a_figure_has_a_copy_s_line_where_all_lines_have_the_same_copy(other, drawn_too):
    _, page = report(curve({8: 1.0, 9: 2.0}), curve({8: 3.0, 9: 4.0}, **other))
    figure = page.partition("Share of an equal copy")[0]
    assert ("an equal copy" in figure[figure.index("<svg") : figure.rindex("</svg>")]) == drawn_too


@pytest.mark.parametrize("told", ["verified", "ok"])
def test_a_broken_clause_is_named_for_points_timed_or_not(tmp_path, told):
    verified = refused("verified", "timer=none: not timed", impl="triton", contract="past_end")
    timed = [dict(row, contract="past_end") for row in curve({1: 2.0}, impl="triton")]
    sweep(tmp_path / "sweep", [[verified] if told == "verified" else timed])
    assert cli.dispatch(["report", str(tmp_path / "sweep")]) == 0
    text = (tmp_path / "sweep" / "report.md").read_text("utf-8")
    assert text.count("writes slots past the end") == 1


def test_a_key_that_all_curves_share_is_said_where_it_is_not_the_default():
    chosen = {"sweep": "", "command": "", "num_layers": 3, "tp_from": 1, "seed": 0}
    rows = [curve({64: 2.0}, layout=layout, **chosen) for layout in ("NHD", "HND")]
    (section,) = build_content([row for own in rows for row in own]).sections
    assert "num_layers=3" in section.common
    assert not re.search("tp_from|seed=|head_size_v", section.common)
    assert "bfloat16 cache, cudagraph, timer=cuda_event, workload=seed" in section.common


@pytest.mark.parametrize(
    ("others", "told"),
    [
        (
            {"kv_cache_dtype": "fp8_e4m3", "num_heads": 16, "num_query_heads": 16},
            ["bfloat16 cache num_heads=8", "fp8_e4m3 cache num_heads=16"],
        ),
        (
            {"impl": "triton", "num_heads": 16, "seed": 3},
            ["cuda num_heads=8 seed=0", "triton num_heads=16 seed=3"],
        ),
        ({"dtype": "half", "head_size_v": 64}, ["bfloat16 head_size_v=128", "half head_size_v=64"]),
    ],
)
def test_nothing_that_differs_between_two_sweeps_is_hidden(others, told):
    rows = [
        *(one | {"sweep": "a", "command": "x"} for one in curve({64: 2.0}, seed=0)),
        *(
            one | {"sweep": "b", "command": "y"}
            for one in curve({64: 1.0}, seed=others.pop("seed", 0), **others)
        ),
    ]
    content = build_content(rows)
    (section,) = content.sections
    assert [name for name, _ in content.commands] == told
    for panel, tables in section.panels:
        names = [f"{one.name} {panel.title}".split() for one in panel.series]
        assert all(any(set(words.split()) <= set(name) for words in told) for name in names)
        assert [name for table in tables for name in table.names] == [one.name for one in panel.series]
    assert [line.label for line in group_by_machine(rows)[0].lines] == told


def test_what_a_workload_or_an_option_stands_for_is_in_the_header():
    tiny = curve({64: 2.0}, workload="tiny", num_heads=2, num_query_heads=2, head_size=32, head_size_v=32)
    tile = '{"cta_threads":256}'
    rows = [one | {"sweep": "", "command": ""} for one in [*tiny, *curve({64: 1.0})]]
    (section,) = build_content([one | {"impl_options": tile} for one in rows]).sections
    assert "; tiny is num_heads=2 and head_size=32; seed is num_heads=8 and head_size=128; " in section.common
    assert section.common.endswith("; cuda has cta_threads=256")


def test_what_differs_within_a_choice_is_no_meaning_of_it():
    """Curves of one workload have 128 heads and 8: the heads tell the query heads, the workload does not."""
    chosen = [("seed", 128, 128), ("seed", 8, 32), ("tiny", 8, 32)]
    rows = [
        one | {"sweep": "", "command": ""}
        for workload, heads, query in chosen
        for one in curve({64: 1.0}, workload=workload, num_heads=heads, num_query_heads=query)
    ]
    (section,) = build_content(rows).sections
    assert "; num_heads=8 is num_query_heads=32" in section.common
    assert " is num_query_heads=128" not in section.common
    assert "seed is" not in section.common
