"""A report's figures: as elements of its page, and as files."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from kvexp.measurement import Row
from kvexp.report import figures as drawing
from kvexp.report import svg
from kvexp.report.content import Content
from kvexp.report.curves import machines
from kvexp.report.format import DASH, number, percent
from kvexp.report.palette import MUTED
from kvexp.report.panels import Panel, panels
from kvexp.results.verdict import interval


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: Its file's, without an ending.
        caption: What it shows, in words.
        title: The same with the name of its panel.
        figure: The drawing.
        svg: The drawing as an element of a page.
        hover: JSON of what the pointer shows at each num_tokens: `[{"x", "size", "lines": [...]}]`.
    """

    name: str
    caption: str
    title: str
    figure: Figure
    svg: str
    hover: str


def drawn(content: Content) -> list[list[tuple[Picture, ...]]]:
    """For each section, for each of its panels, its figures."""
    return [
        [
            _figures(f"machine{section_number}-panel{number}", panel)
            for number, (panel, _) in enumerate(section.panels, start=1)
        ]
        for section_number, section in enumerate(content.sections, start=1)
    ]


def _figures(prefix: str, panel: Panel) -> tuple[Picture, ...]:
    of = f" {DASH} {panel.title}" if panel.title else ""
    with matplotlib.rc_context(drawing.STYLE):
        found = [
            ("latency", "Latency against num_tokens", drawing.latency(panel), _latency),
            (
                "copy",
                "Share of a plain copy's speed against num_tokens",
                drawing.copy_fraction(panel),
                _copied,
            ),
        ]
    return tuple(
        _picture(f"{prefix}-{kind}", (title, title + of), figure, panel, said)
        for kind, title, figure, said in found
        if figure is not None
    )


def save(content: Content, figures: list[list[tuple[Picture, ...]]], folder: Path) -> None:
    """Every figure and heat map is there as PNG and SVG; the folder is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for count, (section, own) in enumerate(zip(content.sections, figures, strict=True), start=1):
        for picture in (picture for shown in own for picture in shown):
            _save(picture.figure, section.name, folder, picture.name)
        for contrast in section.contrasts:
            words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{contrast.candidate}-against-{contrast.baseline}")
            with matplotlib.rc_context(drawing.STYLE):
                figure = drawing.heat_map(contrast)
            _save(figure, section.name, folder, f"machine{count}-{contrast.axis}-{words}")


def save_curve(rows: Sequence[Row], folder: Path, name: str) -> None:
    """The latency of one curve is there as NAME.svg and NAME.png, unless nothing was timed."""
    for machine in machines(rows)[:1]:  # one process has measured them, so there is one
        with matplotlib.rc_context(drawing.STYLE):
            figure = drawing.latency(panels(machine.lines)[0])
        _save(figure, machine.name, folder, name)


def _save(figure: Figure, machine: str, folder: Path, name: str) -> None:
    # A picture travels alone, so it says what it was measured on.
    figure.supxlabel(machine, fontsize=8, color=MUTED)
    svg.save(figure, folder, name)


def _picture(
    name: str, words: tuple[str, str], figure: Figure, panel: Panel, said: Callable[[Row], str]
) -> Picture:
    text = svg.text(figure, name)  # drawn first: only then is it known where a point lies
    sizes = sorted({row["num_tokens"] for one in panel.series for row in one.line.points})
    shown = []
    for size in sizes:
        lines = []
        for one in panel.series:
            row = one.line.at(size)
            if row is not None and said(row) != DASH:
                lines.append([one.name, one.colour, said(row), row["latency_us"]])
        lines.sort(key=lambda line: line[3])
        shown.append(
            {"x": svg.pixels(figure, size, 1)[0], "size": f"{size:,}", "lines": [line[:3] for line in lines]}
        )
    return Picture(name, *words, figure, text, json.dumps(shown, ensure_ascii=False))


def _latency(row: Row) -> str:
    low, high = interval(row)
    return f"{number(row['latency_us'])} µs ({number(low)}{DASH}{number(high)})"


def _copied(row: Row) -> str:
    return percent(row.get("copy_fraction"))
