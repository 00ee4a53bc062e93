"""A sweep's report and the figure of a curve, drawn from rows for a store to keep."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvexp.measurement import Row
from kvexp.process import frozen_imports
from kvexp.results import load

PAGE, MARKDOWN, FIGURE = "report.html", "report.md", "latency"


def prepare() -> None:
    """What draws is imported, which takes a second: in good time, when something else is waited for."""
    with frozen_imports(), suppress(Exception):  # drawing tells
        import kvexp.report.render  # noqa: F401  # what draws imports it where it is asked for


def report(home: Path, folder: Path) -> None:
    """PAGE and MARKDOWN of the sweep in `home` are in the folder."""
    from kvexp.report import render  # here, as below, since few commands draw

    render.write_report(load.read([home], home), folder)


def figure(rows: Sequence[Row], folder: Path) -> str:
    """The curve's latency is in the folder, as FIGURE.svg and .png, where something was timed.

    Returns:
        Why it cannot be drawn; empty when it can.
    """
    try:
        from kvexp.report import embed

        embed.save_curve(rows, folder, FIGURE)
    except Exception as error:  # noqa: BLE001  # whatever a drawing may raise costs the curve its figure alone
        return str(error) or type(error).__name__
    return ""
