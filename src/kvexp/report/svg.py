"""Figures to files, and to elements of a page that take the colours of its theme."""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from kvexp.report.figures import STYLE
from kvexp.report.palette import GRID, INK, MUTED, PALETTE

_THEME = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(PALETTE)
}
_DPI = 150
_POINTS_PER_INCH = 72


def text(figure: Figure, salt: str) -> str:
    """The figure as an element of a page, its ids made unlike those of any other `salt`."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its groups are called figure_1, axes_1 in every figure; nothing refers to those.
    svg = re.sub(r'<g id="[a-zA-Z][\w.]*_\d+">', "<g>", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+pt" height="[\d.]+pt"', r'\1 role="img"', svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px 'sans-serif'[^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    return svg


def save(figure: Figure, folder: Path, name: str) -> None:
    """The figure is there as NAME.svg and NAME.png, on white."""
    for kind in ("png", "svg"):
        metadata = {"Date": None} if kind == "svg" else None
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
            figure.savefig(folder / f"{name}.{kind}", dpi=_DPI, facecolor="white", metadata=metadata)
        figure.set_layout_engine("none")  # both are laid out alike, and that is half of the work


def pixels(figure: Figure, x: float, y: float) -> tuple[float, float]:
    """Where a point of the figure's data lies in its SVG; the figure has been drawn."""
    found: Any = figure.axes[0].transData.transform((x, y))
    height = figure.get_figheight() * _POINTS_PER_INCH
    scale = _POINTS_PER_INCH / figure.dpi
    return round(found[0] * scale, 1), round(height - found[1] * scale, 1)
