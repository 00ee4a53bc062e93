"""Draw panels as figures, for files and for the page, which replaces the colours."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from kvexp.measurement import Row
from kvexp.report.panels import PALETTE, Panel, Series
from kvexp.report.regimes import LAUNCH, Best, find_regimes
from kvexp.results.verdict import interval

INK, MUTED, GRID = "#1f2328", "#6e7781", "#d9dee3"
_COPY = ("bytes_moved", "cache_state", "inputs_state")  # points equal in these and their clock share a copy
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_MIN_LINEAR = 0.2  # of a copy's speed; below that a linear axis shows no differences
_LEAST_RATIO = 0.5  # of an equal copy to the best; a faster one would leave the others no room
_MOST_LINEAR = 4  # times the best, from which on a linear axis shows no differences near it
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
    return _finish(figure, axes, panel)


def draw_time_over_best(panel: Panel, best: Best) -> Figure | None:
    """Draw latencies over the least one of their task, and regimes; None where no two lines do one task."""
    tasks = [one.line.task for one in panel.series if not one.line.is_copy]
    if len(set(tasks)) == len(tasks) or not any(task in best for task in tasks):
        return None
    figure, axes = _make_axes("time over the best")
    for series in panel.series:
        own = best.get(series.line.task, {})
        _draw_series(axes, series, partial(_get_ratio, own), inverse=False)
    axes.axhline(1, color=MUTED, linewidth=0.8, zorder=0)
    own = best.get(tasks[0], {})
    ratios = {size: us / own[size] for size, us in _find_copies(panel).items() if size in own}
    if ratios and min(ratios.values()) >= _LEAST_RATIO:
        _draw_copy(axes, ratios)
    if max(axes.get_ylim()) > _MOST_LINEAR:
        axes.set_yscale("log")
    _draw_regimes(axes, panel)
    return _finish(figure, axes, panel)


def draw_copy_fraction(panel: Panel) -> Figure | None:
    """Draw the copy's time over the call's against num_tokens; return None where no point has a copy."""
    if not any(row.get("copy_fraction") is not None for row in panel.points):
        return None
    figure, axes = _make_axes("of an equal copy's speed (%)")
    for series in panel.series:
        _draw_series(axes, series, _get_percent_of_copy, inverse=True)
    axes.axhline(100, color=MUTED, linewidth=1.2, linestyle=(0, (1, 1)), label="an equal copy")
    bottom, top = axes.get_ylim()
    if min(row["copy_fraction"] for row in panel.points if row.get("copy_fraction")) < _MIN_LINEAR:
        axes.set_yscale("log")
    else:
        axes.set_ylim(max(0, 10 * math.floor(bottom / 10)), max(top, 102))
    return _finish(figure, axes, panel)


def share_range(figures: Sequence[Figure]) -> None:
    """Give figures of one kind one range of y, logarithmic where one of them is."""
    axes = [figure.axes[0] for figure in figures]
    limits = [one.get_ylim() for one in axes]
    is_log = any(one.get_yscale() == "log" for one in axes)
    for one in axes:
        if is_log:
            one.set_yscale("log")
        lowest = [low for low, _ in limits if low > 0 or not is_log]
        one.set_ylim(min(lowest, default=limits[0][0]), max(high for _, high in limits))
        _tick(one, is_log)


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
    """Draw an empty kernel's time, and an equal copy's where all lines have the same one."""
    if copies := _find_copies(panel):
        _draw_copy(axes, copies)
    empty = [row["empty_kernel_us"] for row in panel.points if row.get("empty_kernel_us")]
    if empty and len({row.get("device_name") for row in panel.points}) == 1:
        axes.axhline(median(empty), color=MUTED, linewidth=1, linestyle=(0, (5, 3)), label="an empty kernel")


def _draw_copy(axes: Axes, copies: Mapping[int, float]) -> None:
    axes.plot(
        list(copies),
        list(copies.values()),
        color=MUTED,
        linewidth=1.2,
        linestyle=(0, (1, 1)),
        label="an equal copy",
    )


def _find_copies(panel: Panel) -> dict[int, float]:
    """Find the equal copy's time at each num_tokens; empty where lines have different ones."""
    copies: dict[int, dict[tuple[Any, ...], list[float]]] = {}
    clocks = set()
    for row in panel.points:
        if row.get("copy_us") is not None:
            kinds = copies.setdefault(row["num_tokens"], {})
            kinds.setdefault(tuple(row.get(column) for column in _COPY), []).append(row["copy_us"])
            clocks.add((row.get("timer"), row.get("mode"), row.get("device_name")))
    if len(clocks) != 1 or any(len(kinds) > 1 for kinds in copies.values()):
        return {}
    return {size: median(next(iter(copies[size].values()))) for size in sorted(copies)}


def _draw_regimes(axes: Axes, panel: Panel) -> None:
    """Mark which sizes are limited by what, where there is more than one such regime or it is the launch."""
    regimes = find_regimes([row for one in panel.series if not one.line.is_copy for row in one.line.points])
    if len(regimes) < 2 and not any(name == LAUNCH for name, *_ in regimes):
        return
    for (_, _, before), (_, after, _) in pairwise(regimes):
        axes.axvline(math.sqrt(before * after), color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    left, right = axes.get_xlim()
    ends = [left, *(math.sqrt(a[2] * b[1]) for a, b in pairwise(regimes)), right]
    for (name, *_), (start, end) in zip(regimes, pairwise(ends), strict=True):
        axes.text(
            math.sqrt(start * end),
            1.0,
            name,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=MUTED,
        )


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


def _tick(axes: Axes, is_log: bool) -> None:
    """Give the y axis plain numbers, and a logarithmic one more of them where it spans little."""
    bottom, top = axes.get_ylim()
    if is_log and top / bottom < _MIN_SPAN:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    elif is_log and top / bottom < _MIN_SPAN**2:
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
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def _get_percent_of_copy(row: Row) -> float | None:
    fraction = row.get("copy_fraction")
    return None if fraction is None else 100 * fraction


def _get_ratio(best: Mapping[int, float], row: Row) -> float | None:
    least = best.get(row["num_tokens"])
    return None if least is None else row["latency_us"] / least
