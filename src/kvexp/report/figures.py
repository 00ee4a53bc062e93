"""Draw panels and contrasts as figures, for files and for the page, which replaces the colours."""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from kvexp.measurement import Row
from kvexp.report.panels import PALETTE, Panel, Series
from kvexp.report.speedups import Contrast
from kvexp.results.verdict import Verdict, interval

INK, MUTED, GRID = "#1f2328", "#6e7781", "#d9dee3"
_COPY = ("bytes_moved", "cache_state", "inputs_state")  # points equal in these and their clock share a copy
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_DIVERGING = LinearSegmentedColormap.from_list("speedup", ["#e89a66", "#ffffff", "#66aad1"])
_MIN_LINEAR = 0.2  # of a copy's speed; below that a linear axis shows no differences
_MIN_SPAN = 5  # a logarithmic axis that spans less has too few round ticks
_LEGEND_WIDTH, _LEGEND_HANDLE = 84, 8  # in letters: a line of the legend, and the dash of an entry
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


def draw_latency(panel: Panel) -> Figure:
    """Draw latency against num_tokens, both logarithmic, with intervals, the copy and the empty kernel."""
    figure, axes = _make_axes("latency of one call (µs)")
    axes.set_yscale("log")
    for series in panel.series:
        _draw_series(axes, series, lambda row: row["latency_us"], inverse=False)
    _draw_floors(axes, panel)
    _tick_log(axes)
    return _finish(figure, axes, panel)


def draw_copy_fraction(panel: Panel) -> Figure | None:
    """Draw the copy's time over the call's against num_tokens; return None where no point has a copy."""
    if not any(row.get("copy_fraction") is not None for row in panel.points):
        return None
    figure, axes = _make_axes("of a plain copy's speed (%)")
    for series in panel.series:
        _draw_series(axes, series, _get_percent_of_copy, inverse=True)
    axes.axhline(100, color=MUTED, linewidth=1.2, linestyle=(0, (1, 1)), label="a plain copy")
    bottom, top = axes.get_ylim()
    if min(row["copy_fraction"] for row in panel.points if row.get("copy_fraction")) < _MIN_LINEAR:
        axes.set_yscale("log")
        _tick_log(axes)
    else:
        axes.set_ylim(max(0, 10 * math.floor(bottom / 10)), max(top, 102))
    return _finish(figure, axes, panel)


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


def _make_axes(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_xlabel("num_tokens")
    axes.set_ylabel(label)
    axes.grid(visible=True, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _draw_series(axes: Axes, series: Series, of: Callable[[Row], float | None], *, inverse: bool) -> None:
    points = [(row, found) for row in series.line.points if (found := of(row)) is not None]
    if not points:
        return
    sizes = [row["num_tokens"] for row, _ in points]
    colour = PALETTE[series.colour]
    # The latency's interval, scaled to what is drawn: a multiple of the latency or of its inverse.
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


def _draw_floors(axes: Axes, panel: Panel) -> None:
    """Draw lower bounds: an empty kernel, and a plain copy where all lines have the same one."""
    copies: dict[int, dict[tuple[Any, ...], list[float]]] = {}
    clocks = set()
    for row in panel.points:
        if row.get("copy_us") is not None:
            kinds = copies.setdefault(row["num_tokens"], {})
            kinds.setdefault(tuple(row.get(column) for column in _COPY), []).append(row["copy_us"])
            clocks.add((row.get("timer"), row.get("mode")))
    if len(clocks) == 1 and all(len(kinds) == 1 for kinds in copies.values()):
        sizes = sorted(copies)
        times = [median(next(iter(copies[size].values()))) for size in sizes]
        axes.plot(sizes, times, color=MUTED, linewidth=1.2, linestyle=(0, (1, 1)), label="a plain copy")
    empty = [row["empty_kernel_us"] for row in panel.points if row.get("empty_kernel_us")]
    if empty:
        axes.axhline(median(empty), color=MUTED, linewidth=1, linestyle=(0, (5, 3)), label="an empty kernel")


def _finish(figure: Figure, axes: Axes, panel: Panel) -> Figure:
    sizes = _thin(sorted({row["num_tokens"] for row in panel.points}))
    axes.set_xticks(sizes, [_abbreviate(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), _LEGEND_WIDTH // (max(map(len, labels)) + _LEGEND_HANDLE)))
    order = _order_by_line(len(labels), columns)
    figure.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        handlelength=2.4,
    )
    return figure


def _tick_log(axes: Axes) -> None:
    """Give the logarithmic y axis plain numbers, and more of them where it spans little."""
    bottom, top = axes.get_ylim()
    if top / bottom < _MIN_SPAN:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    elif top / bottom < _MIN_SPAN**2:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_format_tick))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _order_by_line(count: int, columns: int) -> list[int]:
    """Order the entries so that a legend, which fills column by column, reads line by line."""
    lines = math.ceil(count / columns)
    full = count % columns or columns  # columns that reach the last line
    return [
        column + line * columns
        for column in range(columns)
        for line in range(lines if column < full else lines - 1)
    ]


def _thin(sizes: Sequence[int]) -> list[int]:
    """Select at most nine sizes at equal steps, from the first on."""
    step = math.ceil(len(sizes) / 9)
    return list(sizes)[::step]


def _abbreviate(size: int) -> str:
    """Abbreviate 4096 to `4k` and 65536 to `64k`; 512 stays `512`."""
    return f"{size // 1024}k" if size >= 1024 and size % 1024 == 0 else f"{size:,}"


def _format_tick(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _get_percent_of_copy(row: Row) -> float | None:
    fraction = row.get("copy_fraction")
    return None if fraction is None else 100 * fraction
