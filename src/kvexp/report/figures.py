"""Panels and contrasts to figures: one drawing for files and for the page, which has colours of its own."""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from kvexp.measurement import Row
from kvexp.report.palette import GRID, INK, MUTED, PALETTE
from kvexp.report.panels import Panel, Series
from kvexp.report.speedups import Contrast
from kvexp.results.verdict import Verdict, interval

_COPY = (
    "bytes_moved",
    "cache_state",
    "inputs_state",
)  # points that a clock finds alike in these have one copy
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_DIVERGING = LinearSegmentedColormap.from_list("told", ["#e89a66", "#ffffff", "#66aad1"])
_FAR = 0.2  # of a copy's speed; below that a linear axis shows no differences
_SHORT = 5  # a logarithmic axis that spans less has too few round ticks
_LEGEND_WIDTH, _LEGEND_HANDLE = 84, 8  # letters that a legend's line and an entry's dash take
_MARKERS = ("o", "s", "^", "D")
_SIZE = (6.2, 3.9)
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.fontsize": 9.5,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def latency(panel: Panel) -> Figure:
    """Latency against num_tokens, both logarithmic, with intervals, the copy and the empty kernel."""
    figure, axes = _empty("latency of one call (µs)")
    axes.set_yscale("log")
    for series in panel.series:
        _draw(axes, series, lambda row: row["latency_us"], inverse=False)
    _floors(axes, panel)
    _tick_log(axes)
    return _finished(figure, axes, panel)


def copy_fraction(panel: Panel) -> Figure | None:
    """The copy's time over the call's against num_tokens; None where nothing was compared with a copy."""
    if not any(row.get("copy_fraction") is not None for one in panel.series for row in one.line.points):
        return None
    figure, axes = _empty("of a plain copy's speed (%)")
    for series in panel.series:
        _draw(axes, series, _percent_of_copy, inverse=True)
    axes.axhline(100, color=MUTED, linewidth=1.2, linestyle=(0, (1, 1)), label="a plain copy")
    bottom, top = axes.get_ylim()
    if (
        min(
            row["copy_fraction"]
            for one in panel.series
            for row in one.line.points
            if row.get("copy_fraction")
        )
        < _FAR
    ):
        axes.set_yscale("log")
        _tick_log(axes)
    else:
        axes.set_ylim(max(0, 10 * math.floor(bottom / 10)), max(top, 102))
    return _finished(figure, axes, panel)


def heat_map(contrast: Contrast) -> Figure:
    """The speed-up in every context at every num_tokens; where none can be told the cell has no colour."""
    contexts = list(contrast.cells)
    height = 1.5 + 0.36 * len(contexts)
    figure = Figure(figsize=(2.6 + 0.62 * len(contrast.num_tokens), height), layout="constrained")
    axes = figure.add_subplot()
    speedups = [[_told(own.get(size)) for size in contrast.num_tokens] for own in contrast.cells.values()]
    axes.imshow(speedups, cmap=_DIVERGING, vmin=-1, vmax=1, aspect="auto")
    for y, context in enumerate(contexts):
        for x, size in enumerate(contrast.num_tokens):
            verdict = contrast.cells[context].get(size)
            if verdict:
                told = verdict.word in ("faster", "slower")
                axes.text(
                    x, y, f"{verdict.speedup:.2f}", ha="center", va="center", color=INK if told else MUTED
                )
    axes.set_xticks(
        range(len(contrast.num_tokens)), [f"{size:,}" for size in contrast.num_tokens], rotation=45
    )
    axes.set_yticks(range(len(contexts)), [context or "all" for context in contexts])
    axes.set_xlabel("num_tokens")
    axes.set_title(f"{contrast.candidate}: times as fast as {contrast.baseline}", fontsize=11, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _told(verdict: Verdict | None) -> float:
    """How much colour a cell has: -1 is all of it for slower, 1 for faster, NaN where nothing is told."""
    if verdict is None or verdict.word not in ("faster", "slower"):
        return math.nan
    return math.copysign(verdict.strength, verdict.speedup - 1)


def _empty(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_xlabel("num_tokens")
    axes.set_ylabel(label)
    axes.grid(visible=True, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _draw(axes: Axes, series: Series, of: Callable[[Row], float | None], *, inverse: bool) -> None:
    points = [(row, found) for row in series.line.points if (found := of(row)) is not None]
    if not points:
        return
    sizes = [row["num_tokens"] for row, _ in points]
    colour = PALETTE[series.colour]
    # A latency's interval, carried over to whatever is drawn of it: each is its multiple or its inverse's.
    ends = [[interval(row)[side] / row["latency_us"] for row, _ in points] for side in (0, 1)]
    low, high = (
        [found / end if inverse else found * end for (_, found), end in zip(points, side, strict=True)]
        for side in ends
    )
    axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(
        sizes,
        [found for _, found in points],
        color=colour,
        linestyle=_DASHES[series.dash],
        marker=_MARKERS[series.dash],
        markersize=4,
        linewidth=1.7,
        label=series.name,
    )


def _floors(axes: Axes, panel: Panel) -> None:
    """What nothing can beat: an empty kernel, and a copy, where all lines have the same one."""
    copies: dict[int, dict[tuple[Any, ...], list[float]]] = {}
    clocks = set()
    for row in (row for one in panel.series for row in one.line.points):
        if row.get("copy_us") is not None:
            kinds = copies.setdefault(row["num_tokens"], {})
            kinds.setdefault(tuple(row.get(column) for column in _COPY), []).append(row["copy_us"])
            clocks.add((row.get("timer"), row.get("mode")))
    if len(clocks) == 1 and all(len(kinds) == 1 for kinds in copies.values()):
        sizes = sorted(copies)
        times = [median(next(iter(copies[size].values()))) for size in sizes]
        axes.plot(sizes, times, color=MUTED, linewidth=1.2, linestyle=(0, (1, 1)), label="a plain copy")
    empty = [
        row["empty_kernel_us"]
        for one in panel.series
        for row in one.line.points
        if row.get("empty_kernel_us")
    ]
    if empty:
        axes.axhline(median(empty), color=MUTED, linewidth=1, linestyle=(0, (5, 3)), label="an empty kernel")


def _finished(figure: Figure, axes: Axes, panel: Panel) -> Figure:
    sizes = _thinned(sorted({row["num_tokens"] for one in panel.series for row in one.line.points}))
    axes.set_xticks(sizes, [_short(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), _LEGEND_WIDTH // (max(map(len, labels)) + _LEGEND_HANDLE)))
    order = _by_line(len(labels), columns)
    figure.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        handlelength=2.4,
    )
    return figure


def _tick_log(axes: Axes) -> None:
    """The logarithmic y axis has plain numbers, and enough of them where it spans little."""
    bottom, top = axes.get_ylim()
    if top / bottom < _SHORT:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    elif top / bottom < _SHORT**2:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _by_line(count: int, columns: int) -> list[int]:
    """The entries so ordered that a legend, which fills its columns first, reads along its lines."""
    lines = math.ceil(count / columns)
    full = count % columns or columns  # columns that reach the last line
    return [
        column + line * columns
        for column in range(columns)
        for line in range(lines if column < full else lines - 1)
    ]


def _thinned(sizes: Sequence[int]) -> list[int]:
    """At most nine of them, the first and the last among them where they lie evenly."""
    step = math.ceil(len(sizes) / 9)
    return list(sizes)[::step]


def _short(size: int) -> str:
    """`512`, `4k` for 4096 and `64k` for 65536."""
    return f"{size // 1024}k" if size >= 1024 and size % 1024 == 0 else f"{size:,}"


def _plain(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _percent_of_copy(row: Row) -> float | None:
    fraction = row.get("copy_fraction")
    return None if fraction is None else 100 * fraction
