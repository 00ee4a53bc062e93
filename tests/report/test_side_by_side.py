"""Curves that several devices measured stand side by side: µs, the share of each one's copy, crossovers."""

import pytest

from kvexp.report.content import build_content
from kvexp.report.embed import draw_figures
from kvexp.report.render import render_html, render_markdown
from tests.helpers.recorded_rows import curve

B200 = {"device_name": "NVIDIA B200", "device_uuid": "GPU-2", "driver": "590", "host": "i"}
CPU = {"device_name": "CPU", "device": "cpu", "mode": "no_graph", "timer": "wall_clock", "driver": None}


def content(*sweeps):
    """A report of sweeps of three rounds."""
    return build_content(
        [
            row | {"sweep": str(number), "command": "", "repetition": repetition}
            for number, rows in enumerate(sweeps)
            for repetition in (1, 2, 3)
            for row in rows
        ]
    )


CROSSING = content(
    [*curve({1: 2.0, 64: 3.0, 4096: 10.0}), *curve({1: 2.0, 64: 3.0}, impl="triton")],
    curve({1: 3.0, 64: 3.0, 4096: 5.0, 8192: 9.0}, copy_fraction=0.5, **B200),
)


def test_devices_have_a_section_across_them_and_one_each():
    names = [(section.name.partition(",")[0], bool(section.title)) for section in CROSSING.sections]
    assert names == [("NVIDIA H200 and NVIDIA B200", False), ("NVIDIA H200", True), ("NVIDIA B200", True)]
    assert "H200 and" not in CROSSING.title


def test_it_says_where_devices_cross_over():
    (finding,) = CROSSING.sections[0].findings
    assert finding.between == "NVIDIA H200 or NVIDIA B200, with cuda NHD bfloat16"
    assert finding.sentence == (
        "NVIDIA H200 is fastest at 1 token, 1.50 times as fast as NVIDIA B200; "
        "NVIDIA B200 is fastest at 4,096 tokens, 2.00 times as fast as NVIDIA H200."
    )
    assert CROSSING.sections[0].notes[-1] == (
        "No difference can be told: NVIDIA H200 or NVIDIA B200, with cuda NHD bfloat16 at 64 tokens."
    )


def test_a_table_has_each_devices_microseconds_and_the_share_of_its_own_copy():
    (panel, (table,)), *others = CROSSING.sections[0].panels
    assert not others  # triton was measured on one device alone
    assert table.names == ("NVIDIA H200", "NVIDIA B200")
    cells = {
        size: [cell and (cell.latency, cell.copy, cell.fastest) for cell in line]
        for size, line in table.lines
    }
    assert cells == {
        1: [("2.00", "250 %", True), ("3.00", "50 %", False)],
        64: [("3.00", "167 %", False), ("3.00", "50 %", False)],
        4096: [("10.0", "50 %", False), ("5.00", "50 %", True)],
        8192: [None, ("9.00", "50 %", False)],
    }
    assert len({series.colour for series in panel.series}) == 2


def test_the_page_shows_it_in_both_forms():
    figures = draw_figures(CROSSING)
    page = render_html(CROSSING, figures)
    assert "<h2>Side by side: NVIDIA H200 and NVIDIA B200</h2>" in page
    assert page.count("Machine and software") == 2
    text = render_markdown(CROSSING, figures, "")
    assert "## Side by side: NVIDIA H200 and NVIDIA B200\n" in text
    assert "| 4,096 | 10.0 (9.98–10.0, 50 %) | **5.00** (4.99–5.01, 50 %) |" in text


def test_a_cpu_stands_beside_a_gpu_though_auto_means_other_things_there():
    (finding,) = content(curve({8: 2.0}), curve({8: 900.0}, **CPU)).sections[0].findings
    assert finding.sentence == "NVIDIA H200 is fastest at 8 tokens, 450 times as fast as CPU."


def test_equal_devices_are_named_with_their_machines():
    hosts = content(curve({8: 2.0}), curve({8: 3.0}, host="other"))
    assert hosts.sections[0].name == (
        "NVIDIA H200, host h, driver 580.1 and NVIDIA H200, host other, driver 580.1"
    )


@pytest.mark.parametrize("other", [{"impl": "triton"}, {"seed": 1}, {"mode": "no_graph"}])
def test_devices_that_share_no_curve_do_not_stand_side_by_side(other):
    assert all(
        section.title for section in content(curve({8: 2.0}), curve({8: 2.0}, **B200, **other)).sections
    )
    assert all(section.title for section in content(curve({8: 2.0}), curve({9: 2.0}, **B200)).sections)
