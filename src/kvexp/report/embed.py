"""Draw a report's figures as elements of its page, and save them as files."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from kvexp.host import plain_file
from kvexp.measurement import Row
from kvexp.report import figures as drawing
from kvexp.report.content import Content, Section
from kvexp.report.curves import group_by_machine, make_rows_printable
from kvexp.report.figures import GRID, INK, MUTED, STYLE
from kvexp.report.format import DASH, number, percent
from kvexp.report.heat_map import draw_heat_map
from kvexp.report.panels import PALETTE, Panel, make_panels
from kvexp.report.regimes import Best
from kvexp.results.verdict import interval

_THEME = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(PALETTE)
}
_CAPTIONS = {
    "ratio": "Time over the best against num_tokens",
    "latency": "Latency against num_tokens",
    "copy": "Share of an equal copy's speed against num_tokens",
}
_DPI = 150
_POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: The name of its file, without an ending.
        caption: What it shows, in words.
        title: The caption with the title of its panel.
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


def draw_figures(content: Content) -> list[list[tuple[Picture, ...]]]:
    """Draw the figures: for each section, for each of its panels, its pictures."""
    return [_draw_section(number, section) for number, section in enumerate(content.sections, start=1)]


def _draw_section(section_number: int, section: Section) -> list[tuple[Picture, ...]]:
    """Draw a section's panels; figures of one kind have one range of y."""
    panels = [panel for panel, _ in section.panels]
    with matplotlib.rc_context(STYLE):
        kinds: dict[str, list[Figure | None]] = {
            "ratio": [drawing.draw_time_over_best(panel, section.best) for panel in panels],
            "latency": [drawing.draw_latency(panel) for panel in panels],
            "copy": [drawing.draw_copy_fraction(panel) for panel in panels],
        }
        for figures in kinds.values():
            if drawn := [figure for figure in figures if figure is not None]:
                drawing.share_range(drawn)
    return [
        tuple(
            _make_picture(f"machine{section_number}-panel{number}-{kind}", kind, figure, panel, section.best)
            for kind, figures in kinds.items()
            if (figure := figures[number - 1]) is not None
        )
        for number, panel in enumerate(panels, start=1)
    ]


def save_figures(content: Content, figures: list[list[tuple[Picture, ...]]], folder: Path) -> None:
    """Save every figure and heat map as PNG and SVG; make the folder where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for count, (section, own) in enumerate(zip(content.sections, figures, strict=True), start=1):
        for picture in (picture for pictures in own for picture in pictures):
            _save(picture.figure, section.name, folder, picture.name)
        for contrast in section.contrasts:
            words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{contrast.candidate}-against-{contrast.baseline}")
            with matplotlib.rc_context(STYLE):
                figure = draw_heat_map(contrast)
            _save(figure, section.name, folder, f"machine{count}-{contrast.axis}-{words}")


def save_curve(rows: Sequence[Row], folder: Path, name: str) -> None:
    """Save the latency of one curve as NAME.svg and NAME.png, unless nothing was timed."""
    # One process has measured them, so there is one machine.
    for machine in group_by_machine(make_rows_printable(rows))[:1]:
        with matplotlib.rc_context(STYLE):
            figure = drawing.draw_latency(make_panels(machine.lines)[0])
            drawing.share_range([figure])
        _save(figure, machine.name, folder, name)


def _save(figure: Figure, machine: str, folder: Path, name: str) -> None:
    """Save the figure as NAME.svg and NAME.png, on white."""
    # A file may be shown without its report, so it names the machine.
    figure.supxlabel(machine, fontsize=8, color=MUTED)
    for kind in ("png", "svg"):
        metadata = {"Date": None} if kind == "svg" else None
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=_DPI, facecolor="white", metadata=metadata)
        plain_file.replace(folder / f"{name}.{kind}", buffer.getvalue())
        figure.set_layout_engine("none")  # both have one layout, which is half of the work


def _make_picture(name: str, kind: str, figure: Figure, panel: Panel, best: Best) -> Picture:
    svg = _make_svg(figure, name)  # first: drawing the figure fixes where its points lie
    at_sizes = []
    for size in sorted({row["num_tokens"] for row in panel.points}):
        lines = []
        for one in panel.series:
            row = one.line.at(size)
            text = _format_hover(kind, row, best.get(one.line.task, {}).get(size)) if row else DASH
            if row and text != DASH:
                lines.append((row["latency_us"], [one.name, one.colour, text]))
        lines.sort(key=lambda line: line[0])
        at_sizes.append(
            {"x": _locate(figure, size), "size": f"{size:,}", "lines": [line for _, line in lines]}
        )
    hover = json.dumps(at_sizes, ensure_ascii=False)
    caption = _CAPTIONS[kind]
    return Picture(
        name, caption, f"{caption} {DASH} {panel.title}" if panel.title else caption, figure, svg, hover
    )


def _format_hover(kind: str, row: Row, least_us: float | None) -> str:
    """Format what the pointer shows of a point, a dash where there is nothing."""
    low, high = interval(row)
    match kind:
        case "ratio" if least_us:
            ends = DASH.join(f"{end / least_us:.2f}" for end in (low, high))
            return f"{row['latency_us'] / least_us:.2f} ({ends})"
        case "latency":
            return f"{number(row['latency_us'])} µs ({number(low)}{DASH}{number(high)})"
        case "copy":
            return percent(row.get("copy_fraction"))
    return DASH


def _make_svg(figure: Figure, salt: str) -> str:
    """Draw the figure as an element of a page, in the colours of its theme; `salt` makes its ids unique."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Every figure has groups of the same ids, such as figure_1 and axes_1; nothing refers to them.
    svg = re.sub(r'<g id="[a-zA-Z][\w.]*_\d+">', "<g>", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+pt" height="[\d.]+pt"', r'\1 role="img"', svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px 'sans-serif'[^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    return svg


def _locate(figure: Figure, num_tokens: int) -> float:
    """Return the x coordinate of num_tokens in the SVG of a figure that has been drawn."""
    x, _ = figure.axes[0].transData.transform((num_tokens, 1))
    return round(float(x) * _POINTS_PER_INCH / figure.dpi, 1)
