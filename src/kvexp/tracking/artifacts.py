"""Draw a sweep's report and a curve's figure from their rows, for a store."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvexp.host.process import frozen_imports
from kvexp.measurement import Row
from kvexp.results import load
from kvexp.results.plan import count_planned

PAGE, MARKDOWN, FIGURE = "report.html", "report.md", "latency"


def prepare() -> None:
    """Import the plotting modules, which takes a second, while something else is waited for."""
    with frozen_imports(), suppress(Exception):  # drawing raises it again
        import kvexp.report.render  # noqa: F401  # the functions below import it where they need it


def draw_report(home: Path, folder: Path) -> None:
    """Write PAGE and MARKDOWN of the sweep in `home` to the folder."""
    from kvexp.report import render  # here, as below, since few commands draw

    rows = load.read([home], home)
    render.write_report(rows, folder, planned=count_planned([home], rows))


def draw_figure(rows: Sequence[Row], folder: Path) -> str:
    """Draw the curve's latency to FIGURE.svg and .png, if anything was timed; return why not, if so."""
    try:
        from kvexp.report import embed

        embed.save_curve(rows, folder, FIGURE)
    except Exception as error:  # noqa: BLE001  # whatever drawing raises, the curve is sent without a figure
        return str(error) or type(error).__name__
    return ""
