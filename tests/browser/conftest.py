"""A real sweep, MLflow's UI over it, and a browser; screenshots go to build/browser/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvexp.results import row_file
from tests.helpers import browser

SHOTS = Path(__file__).parents[2] / "build" / "browser"
SWEEP = ("impl=torch", "layout=NHD,HND", "workload.num_heads=1,8", "repeat=2")
SMALL = ("workload=tiny", "workload.num_tokens=[1,8,64]", "device=cpu", "timer.max_seconds=0.02")


@pytest.fixture(scope="session")
def context():
    """A browser context, whose tabs share one cache."""
    with browser.browser() as chromium:
        if chromium is None:
            pytest.skip("there is no chromium: apt-get install chromium, or playwright install chromium")
        made = chromium.new_context(viewport={"width": 1920, "height": 1080})
        made.set_default_timeout(1000 * browser.PATIENCE_S)
        yield made


@pytest.fixture(scope="session")
def place(context, tmp_path_factory):
    """A folder in which a sweep of 2 x 2 curves by two processes was measured and tracked."""
    folder = tmp_path_factory.mktemp("place")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HYDRA_", "MLFLOW_"))}
    command = [sys.executable, "-m", "kvexp", *SWEEP, *SMALL]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def measured(place):
    """The sweep's rows."""
    return row_file.read(place / "multirun")


@pytest.fixture(scope="session")
def address(place):
    """The address of the newest sweep's page."""
    with browser.ui(place) as found:
        yield found


@pytest.fixture
def page(context, address):
    """A new tab with empty local storage."""
    tab = context.new_page()
    yield tab
    tab.evaluate("localStorage.clear()")
    tab.close()


@pytest.fixture
def shot(page):
    """Saves a screenshot of the page."""
    return lambda name: browser.picture(page, SHOTS / f"{name}.png")
