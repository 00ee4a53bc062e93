"""MLflow's UI after a sweep of 2 x 2 curves by two processes, seen by somebody who has set nothing up."""

import re
from collections import Counter

import pytest
from playwright.sync_api import expect

from kvexp.results.labels import group_rows
from tests.helpers.browser import lines, open_charts, open_runs

CURVES, RUNS, POINTS = 4, 8, 24
COLUMNS = [
    *("Run Name", "Created", "status", "layout", "num_heads", "repetition", "impl", "dtype", "mode"),
    *("latency_us_at_1_tokens", "latency_us_at_64_tokens", "latency_us_at_max_tokens"),
    *("peak_gb_per_s", "best_copy_fraction", "kv_cache_dtype"),
]
NAMED = {f"{layout} num_heads={heads}" for layout in ("NHD", "HND") for heads in (1, 8)}


@pytest.fixture
def table(page, address):
    """The page that `make ui` names, with all runs loaded."""
    open_runs(page, address)
    expect(lines(page)).to_have_count(CURVES + RUNS)
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
    texts = [by_line[line].inner_text().splitlines() for line in sorted(by_line)]
    return [text[-1] if text else "" for text in texts]


def group_by_run(measured):
    """The rows of each curve by each process."""
    return group_rows(measured, ("curve", "repetition")).values()


def compare(table):
    """Open MLflow's comparison of all the runs."""
    table.locator(".ag-header input[type=checkbox]").first.check()
    table.get_by_role("button", name="Compare", exact=True).click()
    expect(table.get_by_text(f"Comparing {RUNS} Runs")).to_be_visible()


def open_artifact(page, file):
    """Choose the file among the run's artifacts."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text(file, exact=True).click()


def test_the_table_has_columns_that_say_what_was_measured_and_how_it_came_out(table, shot):
    shot("runs")
    assert titles(table) == COLUMNS


def test_the_table_groups_the_processes_of_a_curve_and_shows_the_numbers_of_each(table, measured):
    columns = ["attributes.`Run Name`", "tags.`status`"]
    columns += [f"params.`{choice}`" for choice in ("layout", "num_heads", "repetition")]
    columns += [f"metrics.`latency_us_at_{at}_tokens`" for at in (1, "max")]
    texts = list(zip(*(cells(table, column) for column in columns), strict=True))
    # A group's line, whose second line is the number of its runs, comes before those of its runs.
    assert [text[0] for text in texts[::3]] == ["2"] * CURVES
    runs = [text for number, text in enumerate(texts) if number % 3]
    of_curve = {name.partition(" #")[0] for name, *_ in runs}
    assert of_curve == NAMED
    assert all(first[0][:14] == second[0][:14] for first, second in zip(runs[::2], runs[1::2], strict=True))
    assert {status for _, status, *_ in runs} == {"ok"}
    shown = {tuple(chosen): (float(one), float(most)) for _, _, *chosen, one, most in runs}
    assert shown == {
        (rows[0]["layout"], str(rows[0]["num_heads"]), str(rows[0]["repetition"])): pytest.approx(
            (rows[0]["latency_us"], rows[-1]["latency_us"]), rel=1e-4
        )
        for rows in group_by_run(measured)
    }


def test_the_charts_draw_each_curves_mean_against_tokens_and_without_groups_what_was_swept(table, shot):
    table.set_viewport_size({"width": 1600, "height": 1350})
    latency = open_charts(table)
    for name in NAMED:
        expect(table.get_by_text(f"{name} (latency_us)", exact=True)).to_be_visible()
    shot("charts")
    table.get_by_text("Group by: curve").locator("[role=button]").click()
    expect(latency.locator(".scatterlayer .points path")).to_have_count(POINTS)
    for axis, count in (("layout", 1), ("num_heads", 1), ("impl", 0), ("mode", 0)):
        expect(table.locator("svg text", has_text=re.compile(f"^{axis}$"))).to_have_count(count)
    shot("parallel")


def test_compare_draws_how_each_choice_leads_to_a_latency(table, shot):
    compare(table)
    axes = table.locator(".parcoords .axis-title")
    expect(axes).to_have_text(["layout", "num_heads", "num_query_heads", "latency_us"])
    shot("compare")


def test_compare_leads_to_curves_of_latency_against_tokens(table, measured, shot):
    compare(table)
    # By the keyboard: the table that holds the link takes no pointer for 150 ms after it was scrolled to.
    table.get_by_role("link", name="latency_us", exact=True).press("Enter")
    curve = table.locator(".js-plotly-plot .scatterlayer .trace .js-line")
    expect(curve.nth(RUNS - 1)).to_be_attached()
    expect(table.get_by_role("radio", name="Step")).to_be_checked()
    # The table below has each curve's latest, and its extremes, which on a busy machine are of any step.
    by_latency = [sorted(rows, key=lambda row: row["latency_us"]) for rows in group_by_run(measured)]
    steps = Counter(row["num_tokens"] for rows in by_latency for row in (rows[0], rows[-1]))
    steps[64] += RUNS
    for step, count in steps.items():
        expect(table.get_by_text(f"(step={step})")).to_have_count(count)
    shot("latency")


def test_a_curves_run_shows_its_figure(table, shot):
    table.get_by_role("link", name="NHD num_heads=1", exact=True).click()
    open_artifact(table, "latency.svg")
    figure = table.get_by_role("img", name="latency.svg")
    expect(figure).to_be_visible()
    expect(table.get_by_role("link", name="Runs", exact=True).first).to_be_visible()
    assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    shot("figure")


def test_the_sweeps_run_shows_its_report_which_asks_nothing_of_a_network(table, address, shot):
    asked = []
    table.on("request", lambda request: asked.append(request.url))
    table.get_by_role("link", name="NHD num_heads=1", exact=True).click()
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
    for name, count in (("All curves", RUNS), ("Sweeps", 1)):
        table.get_by_test_id("saved-views-trigger").click()
        table.get_by_text(name, exact=True).click()
        expect(table.get_by_test_id("saved-views-trigger")).to_have_text(name)
        expect(lines(table)).to_have_count(count)
    assert cells(table, "metrics.`points_ok`") == [str(POINTS)]
