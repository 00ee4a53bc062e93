"""Take the pictures in docs/pictures/ of a measured sweep: python -m tests.browser.pictures SWEEP."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.browser import browser, open_charts, open_runs, picture, ui

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def take(sweep: Path, folder: Path) -> None:
    """Write mlflow_runs.png, mlflow_compare.png and report.png into the folder.

    Args:
        sweep: The sweep's folder, .../<date>/<time>.
        folder: The folder of the pictures.
    """
    with tempfile.TemporaryDirectory() as made, browser() as chromium:
        assert chromium, "there is no chromium on this machine"
        place = Path(made)
        for words in (["sync", str(sweep)], ["report", str(sweep), "--output", made]):
            subprocess.run([sys.executable, "-m", "kvexp", *words], cwd=place, check=True)
        page = chromium.new_page(viewport={"width": 1280, "height": 1400})
        page.goto((place / "report.html").as_uri())
        picture(page, folder / "report.png")
        with ui(place) as address:
            page.set_viewport_size({"width": 1850, "height": 700})
            open_runs(page, address)
            picture(page, folder / "mlflow_runs.png")
            page.set_viewport_size({"width": 1600, "height": 1350})
            open_charts(page)
            picture(page, folder / "mlflow_compare.png")


if __name__ == "__main__":
    take(Path(sys.argv[1]).resolve(), PICTURES)
