"""Draw how the points of a baseline have changed from commit to commit."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from kvexp.report.figures import MUTED, STYLE
from kvexp.report.panels import PALETTE
from kvexp.results.history import Line

_NAMED = len(PALETTE)


def draw_history(commits: Sequence[str], lines: Sequence[Line]) -> Figure:
    """Draw each point's latency over its first one, by commit.

    The points that changed most come first in `lines`: the first that changed have a colour and a name.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.9), layout="constrained")
        axes = figure.add_subplot()
        axes.set_ylabel("latency / first latency")
        axes.grid(visible=True, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xticks(range(len(commits)), commits, rotation=45 if len(commits) > 6 else 0)
        named = [line for line in lines if line.changes][:_NAMED]
        for line in reversed(lines):
            known = [latency for latency in line.latencies_us if latency is not None]
            heights = [math.nan if one is None else one / known[0] for one in line.latencies_us]
            if line in named:
                label = f"{line.label}, {line.num_tokens:,}"
                axes.plot(heights, color=PALETTE[named.index(line)], marker="o", label=label, zorder=3)
            else:
                axes.plot(heights, color=MUTED, linewidth=0.7, alpha=0.5)
        if named:
            figure.legend(loc="outside lower center", frameon=False, reverse=True)
    return figure


def save(figure: Figure, file: Path) -> None:
    """Write a figure into a file, of the kind that its suffix says.

    Raises:
        OSError: It cannot be written.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": file.name}):
        figure.savefig(file, facecolor="white")
