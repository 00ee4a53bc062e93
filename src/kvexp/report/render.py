"""The report as one HTML page that needs nothing else, and as Markdown."""

import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kvexp.report.content import Content
from kvexp.report.embed import Picture
from kvexp.results.verdict import Verdict

_TEMPLATES = Path(__file__).parent / "templates"


def html(content: Content, figures: Sequence[Sequence[Sequence[Picture]]]) -> str:
    """The page: its figures, style and script are in it, and it asks nothing of any network.

    Args:
        content: The report.
        figures: For each section, for each of its panels, its pictures.
    """
    sections = [
        (section, [(*panel, own) for panel, own in zip(section.panels, shown, strict=True)])
        for section, shown in zip(content.sections, figures, strict=True)
    ]
    style, script = ((_TEMPLATES / name).read_text("utf-8") for name in ("style.css", "hover.js"))
    template = _environment(autoescape=True).get_template("report.html.j2")
    # Both are files of this package, and neither holds a closing tag.
    return template.render(content=content, sections=sections, style=_Safe(style), script=_Safe(script))


def markdown(content: Content, figures: Sequence[Sequence[Sequence[Picture]]], base: str) -> str:
    """The same in Markdown.

    Args:
        content: The report.
        figures: For each section, for each of its panels, its pictures.
        base: The folder in which those are files, as seen from the Markdown; empty where they are none.
    """
    text = (
        _environment(autoescape=False)
        .get_template("report.md.j2")
        .render(content=content, figures=figures, base=base)
    )
    lines = (line.rstrip() for line in text.splitlines())
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).rstrip() + "\n"


class _Safe(str):
    """Text that jinja2 leaves as it is."""

    def __html__(self) -> str:
        return self


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(os.fspath(_TEMPLATES)),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mix"] = _mix
    environment.filters["cell"] = _cell
    return environment


def _mix(verdict: Verdict) -> int:
    """How much of its colour a cell of the heat map shows, in percent."""
    return round(70 * verdict.strength)


def _cell(text: str) -> str:
    """The text on one line, with nothing that Markdown would take for a table or for HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
