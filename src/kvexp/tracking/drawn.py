"""A sweep's report and the figures of its curves, drawn from its rows for a store to keep."""

from contextlib import suppress
from pathlib import Path

from kvexp import results
from kvexp.rows import ROWS, read

PAGE, MARKDOWN, FIGURE = "report.html", "report.md", "latency"


def prepare() -> None:
    """What draws is imported, which takes a second: in good time, when something else is waited for."""
    with suppress(Exception):  # drawing tells
        import kvexp.report.written  # noqa: F401


def draw(home: Path, folder: Path) -> None:
    """PAGE and MARKDOWN of the sweep are in the folder, and a folder for each curve with its figure, if any.

    Args:
        home: The sweep's folder.
        folder: It is there.
    """
    from kvexp.report import pictures, written  # here, since few commands draw

    written.write(results.read([home], home), folder)
    for job in sorted(file.parent for file in home.glob(f"*/{ROWS}")):
        (folder / job.name).mkdir()
        pictures.save_curve(read(job), folder / job.name, FIGURE)
