"""Start a browser and `kvexp ui` for the browser tests and the pictures of the docs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.helpers import mlflow_server

PATIENCE_S = 120
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@contextmanager
def browser() -> Iterator[Browser | None]:
    """Start the machine's chromium, else the one that playwright has installed; yield None without either."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    with sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            yield None
            return
        expect.set_options(timeout=1000 * PATIENCE_S)
        # As root, chromium starts only without its sandbox; it opens pages of this machine alone.
        arguments = ["--no-proxy-server", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        started = playwright.chromium.launch(executable_path=path, args=arguments, timeout=1000 * PATIENCE_S)
        yield started
        started.close()


@contextmanager
def ui(folder: Path) -> Iterator[str]:
    """Start `kvexp ui`, and yield the address of the newest sweep's page that it prints.

    Args:
        folder: Holds mlruns/.
    """
    port = mlflow_server.free_port()
    log = folder / "ui.log"
    command = [sys.executable, "-m", "kvexp", "ui", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        assert mlflow_server.answers(f"http://127.0.0.1:{port}/health", process), log.read_text()
        said = re.search(r"^kvexp: (http\S+)$", log.read_text(), re.MULTILINE)
        assert said, log.read_text()
        yield said[1]
    finally:
        process.terminate()
        process.wait(timeout=30)


def lines(page: Page) -> Locator:
    """Return the lines of the table of runs."""
    return page.locator(".ag-center-cols-container .ag-row")


def open_runs(page: Page, address: str) -> None:
    """Open the table of runs, and close the panel that covers its last columns."""
    page.goto(address)
    expect(lines(page).first).to_be_visible()
    assistant = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    if assistant.count():
        assistant.click()
    expect(assistant).to_have_count(0)


def open_charts(page: Page) -> Locator:
    """Switch from the table to the charts; return the first of them once it is drawn."""
    page.locator("label", has=page.locator("input[value=CHART]")).click()
    chart = page.locator(".js-plotly-plot").first
    expect(chart.locator(".scatterlayer .points path").first).to_be_attached()
    return chart


def picture(page: Page, file: Path) -> None:
    """Save a screenshot of the page after its animations."""
    file.parent.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(1000)
    page.screenshot(path=file)
