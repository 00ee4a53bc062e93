"""Draw a contrast as a heat map."""

import math

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from kvexp.report.figures import INK, MUTED
from kvexp.report.speedups import Contrast
from kvexp.results.verdict import Verdict

_DIVERGING = LinearSegmentedColormap.from_list("speedup", ["#e89a66", "#ffffff", "#66aad1"])


def draw_heat_map(contrast: Contrast) -> Figure:
    """Draw the speed-up in every context at every num_tokens; a cell without a certain one has no colour."""
    contexts = list(contrast.cells)
    height = 1.5 + 0.36 * len(contexts)
    figure = Figure(figsize=(2.6 + 0.62 * len(contrast.num_tokens), height), layout="constrained")
    axes = figure.add_subplot()
    speedups = [
        [_get_colour(own.get(size)) for size in contrast.num_tokens] for own in contrast.cells.values()
    ]
    axes.imshow(speedups, cmap=_DIVERGING, vmin=-1, vmax=1, aspect="auto")
    for y, context in enumerate(contexts):
        for x, size in enumerate(contrast.num_tokens):
            verdict = contrast.cells[context].get(size)
            if verdict:
                colour = INK if verdict.word in ("faster", "slower") else MUTED
                axes.text(x, y, f"{verdict.speedup:.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(
        range(len(contrast.num_tokens)), [f"{size:,}" for size in contrast.num_tokens], rotation=45
    )
    axes.set_yticks(range(len(contexts)), [context or "all" for context in contexts])
    axes.set_xlabel("num_tokens")
    axes.set_title(f"{contrast.candidate}: times as fast as {contrast.baseline}", fontsize=11, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _get_colour(verdict: Verdict | None) -> float:
    """Return a cell's colour from -1 for slower to 1 for faster; NaN, no colour, for other verdicts."""
    if verdict is None or verdict.word not in ("faster", "slower"):
        return math.nan
    return math.copysign(verdict.strength, verdict.speedup - 1)
