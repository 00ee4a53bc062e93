"""The page of `kvexp report`, as a browser shows it."""

import subprocess
import sys

import pytest

from kvexp.report.content import build_content
from kvexp.results import load
from tests.browser.conftest import SHOTS
from tests.helpers.browser import picture

LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, for text
LUMINANCE = """
() => ["color", "backgroundColor"].map(property => {
  const channels = getComputedStyle(document.body)[property].match(/[\\d.]+/g).slice(0, 3);
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = channels.map(c => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
})
"""


@pytest.fixture(scope="module")
def file(place):
    """The page of the sweep that was measured."""
    done = subprocess.run(
        [sys.executable, "-m", "kvexp", "report"], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return next(place.glob("multirun/*/*/report.html"))


@pytest.fixture
def report(context, file):
    """A tab that shows the page; fails if the page had errors or failed requests."""
    tab, wrong = context.new_page(), []
    for event in ("pageerror", "requestfailed"):
        tab.on(event, lambda what: wrong.append(str(what)))
    tab.goto(file.as_uri())
    yield tab
    tab.close()
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark(report, scheme):
    report.emulate_media(color_scheme=scheme)
    picture(report, SHOTS / f"report_{scheme}.png")
    ink, paper = report.evaluate(LUMINANCE)
    assert (ink < paper) == (scheme == "light")
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= LEAST_CONTRAST


@pytest.mark.parametrize("width", [1920, 1280, 390])
def test_it_is_never_wider_than_the_window(report, width):
    report.set_viewport_size({"width": width, "height": 800})
    assert report.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1280, 390])
def test_the_pointer_shows_the_values_beneath_it_within_the_window(report, width):
    report.set_viewport_size({"width": width, "height": 800})
    shown = {"Time over the best": "1.00", "Latency": "µs", "Share of an equal copy": "%"}
    for caption, unit in shown.items():
        figure = report.locator("figure", has_text=caption).first
        figure.scroll_into_view_if_needed()
        box = figure.locator("svg").bounding_box()
        for at in (0.1, 0.5, 0.95):
            report.mouse.move(box["x"] + at * box["width"], box["y"] + box["height"] / 2)
            tip = figure.locator(".tip")
            text, place = tip.inner_text(), tip.bounding_box()
            assert unit in text
            assert all(layout in text for layout in ("NHD", "HND"))
            assert place["x"] >= 0
            assert place["x"] + place["width"] <= width
        picture(report, SHOTS / f"report_hover_{width}.png")


def test_its_title_is_its_answer_and_names_are_those_of_the_sweep(report, measured, place):
    # What the answer is depends on what else runs here; tests/report/test_advice.py has it.
    title = build_content(load.read([], place / "multirun")).title
    assert "NHD" in title or "HND" in title
    assert report.locator("h1").inner_text() == title
    names = {row["curve"] for row in measured}
    assert set(report.locator("table.text th").all_inner_texts()) == names
    titles = {title.inner_text() for title in report.locator("section h3").all()}
    assert {name.partition(" ")[2] for name in names} <= titles


def test_it_prints_without_what_needs_a_pointer(report):
    report.emulate_media(media="print", color_scheme="dark")
    picture(report, SHOTS / "report_print.png")
    ink, paper = report.evaluate(LUMINANCE)
    assert ink < paper
    assert not report.locator("summary", has_text="Every point").first.is_visible()
