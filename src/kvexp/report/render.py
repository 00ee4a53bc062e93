"""Render a report as one HTML page that needs no other file, and as Markdown."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kvexp.host import plain_file
from kvexp.host.terminal import make_printable
from kvexp.measurement import Row
from kvexp.report.content import Content, build_content
from kvexp.report.embed import Picture, draw_figures, save_figures
from kvexp.results.verdict import Verdict

_TEMPLATES = Path(__file__).parent / "templates"
_MARKUP = re.compile(r"[\\`*\[\]|~<&]|(?<![^\W_])_|_(?![^\W_])|^[-+=#>]|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What Markdown takes for more than text: code, emphasis, links, images, tables, lists, bare addresses."""
_ENTITIES = {"<": "&lt;", "&": "&amp;"}


def write_report(rows: Sequence[Row], folder: Path, figures: Path | None = None, planned: int = 0) -> Path:
    """Write report.html, which is returned, and report.md into the folder, which is made if it is missing.

    Args:
        rows: As `kvexp.results.load.read` returns them.
        folder: Where to.
        figures: The folder for every figure as PNG and SVG; the Markdown then shows them.
        planned: See `kvexp.results.plan.count_planned`.
    """
    content = build_content(rows, planned)
    pictures = draw_figures(content)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "report.html"
    plain_file.replace(file, render_html(content, pictures).encode(errors="replace"))
    base = os.path.relpath(figures, folder) if figures else ""
    plain_file.replace(file.with_suffix(".md"), render_markdown(content, pictures, base).encode())
    if figures:
        save_figures(content, pictures, figures)
    return file


def render_html(content: Content, figures: Sequence[Sequence[Sequence[Picture]]]) -> str:
    """Render the page with its figures, style and script inside; it loads nothing over a network."""
    sections = [
        (section, [(*panel, own) for panel, own in zip(section.panels, pictures, strict=True)])
        for section, pictures in zip(content.sections, figures, strict=True)
    ]
    style, script = ((_TEMPLATES / name).read_text("utf-8") for name in ("style.css", "hover.js"))
    template = _make_environment(autoescape=True).get_template("report.html.j2")
    # Both are files of this package, and neither holds a closing tag.
    return template.render(content=content, sections=sections, style=_Safe(style), script=_Safe(script))


def render_markdown(content: Content, figures: Sequence[Sequence[Sequence[Picture]]], base: str) -> str:
    """Render the report as Markdown that shows the figures' files in the folder `base`, empty for none."""
    environment = _make_environment(autoescape=False)
    environment.finalize = _escape_markdown
    template = environment.get_template("report.md.j2")
    text = template.render(content=content, figures=figures, base=quote(base))
    lines: list[str] = []
    for line in map(str.rstrip, text.splitlines()):
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


class _Safe(str):
    """Text that is not escaped."""

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
    environment.filters["code"] = _format_code
    return environment


def _get_mix(verdict: Verdict) -> int:
    """Return how much of its colour a cell of the heat map shows, in percent."""
    return round(70 * verdict.strength)


def _escape_markdown(value: object) -> str:
    """Return the value as one line of text that Markdown shows as it is; this is done to every value."""
    if isinstance(value, _Safe):
        return value
    text = make_printable(" ".join(str(value).split()))
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), text)


def _format_code(text: str) -> _Safe:
    """Return the text as code; a fence of more backticks than it has in a row holds them."""
    line = make_printable(text).replace("\n", " ")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if fence != "`" else ""
    return _Safe(f"{fence}{space}{line}{space}{fence}")
