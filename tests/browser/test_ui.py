"""MLflow's UI after a sweep of 2 x 2 x 2 curves, seen by somebody who has set nothing up."""

import re
from collections import Counter

import pytest
from playwright.sync_api import expect

from kvexp.results.labels import group_by_curve
from tests.helpers.browser import lines, open_charts, open_runs

CURVES, POINTS = 8, 24
COLUMNS = [
    *("Run Name", "Created", "status", "impl", "layout", "dtype", "mode"),
    *("latency_us_at_1_tokens", "latency_us_at_64_tokens", "latency_us_at_max_tokens"),
    *("peak_gb_per_s", "best_copy_fraction", "kv_cache_dtype", "scale", "workload", "device_name"),
]
NAMED = {
    f"{layout} {dtype} {cache} cache"
    for layout in ("NHD", "HND")
    for dtype in ("half", "bfloat16")
    for cache in ("unquantised", "fp8_e4m3")
}


@pytest.fixture
def table(page, address):
    """The page that `make ui` names, with all runs loaded."""
    open_runs(page, address)
    expect(lines(page)).to_have_count(CURVES)
    return page


def titles(page):
    """The titles of the columns, from the left."""
    found = page.locator(".ag-header-cell").all()
    in_order = sorted(found, key=lambda cell: cell.bounding_box()["x"])
    return [title for cell in in_order if (title := cell.inner_text())]


def cells(page, column):
    """The texts of the column's cells, from the top down."""
    found = page.locator(f".ag-cell[col-id='{column}']")
    expect(found).to_have_count(lines(page).count())
    by_line = {int(cell.locator("xpath=..").get_attribute("row-index")): cell for cell in found.all()}
    return [by_line[line].inner_text().splitlines()[-1] for line in sorted(by_line)]


def compare(table):
    """Open MLflow's comparison of all the runs."""
    table.locator(".ag-header input[type=checkbox]").first.check()
    table.get_by_role("button", name="Compare", exact=True).click()
    expect(table.get_by_text(f"Comparing {CURVES} Runs")).to_be_visible()


def open_artifact(page, file):
    """Choose the file among the run's artifacts."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text(file, exact=True).click()


def test_the_table_has_columns_that_say_what_was_measured_and_how_it_came_out(table, shot):
    shot("runs")
    assert titles(table) == COLUMNS


def test_the_table_names_every_curve_and_shows_its_numbers_the_fastest_first(table, measured):
    assert set(cells(table, "attributes.`Run Name`")) == NAMED
    assert cells(table, "tags.`status`") == ["ok"] * CURVES
    choices = ("impl", "layout", "dtype", "kv_cache_dtype", "mode")
    chosen = zip(*(cells(table, f"params.`{choice}`") for choice in choices), strict=True)
    one, most = (
        [float(text) for text in cells(table, f"metrics.`latency_us_at_{at}_tokens`")] for at in (1, "max")
    )
    assert most == sorted(most)
    assert dict(zip(chosen, zip(one, most, strict=True), strict=True)) == {
        tuple(rows[0][choice] for choice in choices): pytest.approx(
            (rows[0]["latency_us"], rows[-1]["latency_us"]), rel=1e-4
        )
        for rows in group_by_curve(measured)
    }


def test_the_charts_draw_latency_against_tokens_and_every_choice(table, shot):
    table.set_viewport_size({"width": 1600, "height": 1350})
    latency = open_charts(table)
    expect(latency.locator(".scatterlayer .points path")).to_have_count(POINTS)
    for choice in ("impl", "layout", "dtype", "kv_cache_dtype", "mode", "latency_us"):
        expect(table.locator("svg text", has_text=re.compile(f"^{choice}$")).first).to_be_visible()
    shot("charts")


def test_compare_draws_how_each_choice_leads_to_a_latency(table, shot):
    compare(table)
    axes = table.locator(".parcoords .axis-title")
    expect(axes).to_have_text(["dtype", "kv_cache_dtype", "layout", "latency_us"])
    shot("compare")


def test_compare_leads_to_curves_of_latency_against_tokens(table, measured, shot):
    compare(table)
    # By the keyboard: the table that holds the link takes no pointer for 150 ms after it was scrolled to.
    table.get_by_role("link", name="latency_us", exact=True).press("Enter")
    curve = table.locator(".js-plotly-plot .scatterlayer .trace .js-line")
    expect(curve.nth(CURVES - 1)).to_be_attached()
    expect(table.get_by_role("radio", name="Step")).to_be_checked()
    # The table below has each curve's latest, and its extremes, which on a busy machine are of any step.
    by_latency = [sorted(rows, key=lambda row: row["latency_us"]) for rows in group_by_curve(measured)]
    steps = Counter(row["num_tokens"] for rows in by_latency for row in (rows[0], rows[-1]))
    steps[64] += CURVES
    for step, count in steps.items():
        expect(table.get_by_text(f"(step={step})")).to_have_count(count)
    shot("latency")


def test_a_curves_run_shows_its_figure(table, shot):
    table.get_by_role("link", name="NHD half unquantised cache", exact=True).click()
    open_artifact(table, "latency.svg")
    figure = table.get_by_role("img", name="latency.svg")
    expect(figure).to_be_visible()
    assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    shot("figure")


def test_the_sweeps_run_shows_its_report_which_asks_nothing_of_a_network(table, address, shot):
    asked = []
    table.on("request", lambda request: asked.append(request.url))
    table.get_by_role("link", name="NHD half unquantised cache", exact=True).click()
    table.locator("a", has_text=re.compile(r"^\d{4}-\d\d-\d\d/")).click()  # its parent
    open_artifact(table, "report.html")
    report = table.frame_locator("iframe")
    expect(report.get_by_text("kvexp report")).to_be_visible()
    expect(report.locator("figure svg").first).to_be_visible()
    own = (address.partition("/#")[0], "blob:", "data:")
    assert asked
    assert [url for url in asked if not url.startswith(own)] == []
    shot("report_in_mlflow")


def test_the_menu_has_a_view_of_all_curves_and_one_of_the_sweeps(table):
    for name, count in (("All curves", CURVES), ("Sweeps", 1)):
        table.get_by_test_id("saved-views-trigger").click()
        table.get_by_text(name, exact=True).click()
        expect(table.get_by_test_id("saved-views-trigger")).to_have_text(name)
        expect(lines(table)).to_have_count(count)
    assert cells(table, "metrics.`points_ok`") == [str(POINTS)]
