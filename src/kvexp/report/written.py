"""The report as files."""

import os
from collections.abc import Sequence
from pathlib import Path

from kvexp.measurement import Row
from kvexp.report import embed, render
from kvexp.report.content import content


def write(rows: Sequence[Row], folder: Path, figures: Path | None = None) -> Path:
    """report.html and report.md are in the folder, and the figures in theirs.

    Args:
        rows: As `kvexp.results.read` gives them.
        folder: Made where it is missing.
        figures: Where every figure goes as PNG and SVG; the Markdown then shows them.

    Returns:
        The page.
    """
    said = content(rows)
    drawn = embed.drawn(said)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "report.html"
    file.write_text(render.html(said, drawn), "utf-8")
    base = os.path.relpath(figures, folder) if figures else ""
    file.with_suffix(".md").write_text(render.markdown(said, drawn, base), "utf-8")
    if figures:
        embed.save(said, drawn, figures)
    return file
