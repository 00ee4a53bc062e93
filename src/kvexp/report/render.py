"""Render a report as one HTML page that needs no other file, and as Markdown."""

import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kvexp import plain_file
from kvexp.measurement import Row
from kvexp.report.content import Content, build_content
from kvexp.report.embed import Picture, draw_figures, save_figures
from kvexp.results.verdict import Verdict

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(rows: Sequence[Row], folder: Path, figures: Path | None = None) -> Path:
    """Write report.html and report.md into the folder, and the figures into theirs.

    Args:
        rows: As `kvexp.results.load.read` returns them.
        folder: Made where it is missing.
        figures: The folder for every figure as PNG and SVG; the Markdown then shows them.

    Returns:
        The page.
    """
    content = build_content(rows)
    pictures = draw_figures(content)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "report.html"
    plain_file.replace(file, render_html(content, pictures).encode())
    base = os.path.relpath(figures, folder) if figures else ""
    plain_file.replace(file.with_suffix(".md"), render_markdown(content, pictures, base).encode())
    if figures:
        save_figures(content, pictures, figures)
    return file


def render_html(content: Content, figures: Sequence[Sequence[Sequence[Picture]]]) -> str:
    """Render the page with its figures, style and script inside; it loads nothing over a network.

    Args:
        content: The report.
        figures: For each section, for each of its panels, its pictures.
    """
    sections = [
        (section, [(*panel, own) for panel, own in zip(section.panels, pictures, strict=True)])
        for section, pictures in zip(content.sections, figures, strict=True)
    ]
    style, script = ((_TEMPLATES / name).read_text("utf-8") for name in ("style.css", "hover.js"))
    template = _make_environment(autoescape=True).get_template("report.html.j2")
    # Both are files of this package, and neither holds a closing tag.
    return template.render(content=content, sections=sections, style=_Safe(style), script=_Safe(script))


def render_markdown(content: Content, figures: Sequence[Sequence[Sequence[Picture]]], base: str) -> str:
    """Render the report as Markdown.

    Args:
        content: The report.
        figures: For each section, for each of its panels, its pictures.
        base: The folder of the figures' files, relative to the Markdown; empty without files.
    """
    text = (
        _make_environment(autoescape=False)
        .get_template("report.md.j2")
        .render(content=content, figures=figures, base=base)
    )
    lines: list[str] = []
    for line in map(str.rstrip, text.splitlines()):
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


class _Safe(str):
    """Text that jinja2 does not escape."""

    def __html__(self) -> str:
        return self


def _make_environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(os.fspath(_TEMPLATES)),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mix"] = _get_mix
    environment.filters["cell"] = _escape_cell
    return environment


def _get_mix(verdict: Verdict) -> int:
    """Return how much of its colour a cell of the heat map shows, in percent."""
    return round(70 * verdict.strength)


def _escape_cell(text: str) -> str:
    """Return the text on one line, without characters that Markdown reads as a table or HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
