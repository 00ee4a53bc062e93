"""Build what a report says; the HTML page and the Markdown are both rendered from it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvexp.case import DEFAULTS
from kvexp.measurement import COLUMNS, ENVIRONMENT, MACHINE, SECONDS, STATUSES, Row, is_wrong
from kvexp.report.cost_model import Fit, fit_ways
from kvexp.report.curves import Line, Machine, group_by_machine, make_rows_printable, name_curves
from kvexp.report.findings import (
    Finding,
    compare_with_copy,
    describe_breaches,
    describe_disturbances,
    describe_rule,
    find_fastest,
    has_comparable_points,
    list_confirmed,
    list_findings,
)
from kvexp.report.format import DASH, join_words, number, optional, percent
from kvexp.report.layout_choice import describe_choices
from kvexp.report.layout_costs import describe_control, describe_costs, list_tasks
from kvexp.report.outcomes import Outcome, group_breaches, group_outcomes, unique
from kvexp.report.panels import Panel, make_panels
from kvexp.report.speedups import Contrast, find_axes, make_contrasts
from kvexp.results.labels import format_column, group_by_curve
from kvexp.results.load import COMMAND, SWEEP
from kvexp.results.merge import GPUS, INTERVALS, LATENCIES, PROCESSES, merge_repetitions
from kvexp.results.verdict import interval

_THE_MACHINES = {*SECONDS, *MACHINE, *ENVIRONMENT, "impl_hash"}
_NOT_THE_MACHINES = {*COLUMNS, SWEEP, COMMAND, PROCESSES, LATENCIES, INTERVALS, GPUS} - _THE_MACHINES

_ABREAST = 3
_COMMON = (
    *("op", "impl", "layout", "dtype", "kv_cache_dtype", "mode", "timer", "workload"),
    *("num_heads", "head_size", "head_size_v", "block_size", "num_blocks", "slots"),
)


@dataclass(frozen=True)
class Cell:
    """One point in a table, as texts."""

    latency: str
    between: str
    copy: str
    gb_per_s: str
    fastest: bool


@dataclass(frozen=True)
class Table:
    """Points of a panel: a line for each num_tokens, with a cell or None for each of the names."""

    names: tuple[str, ...]
    lines: tuple[tuple[int, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True)
class Section:
    """One machine's part of the report.

    Attributes:
        name: The machine's.
        costs: What each layout costs and which to choose, where a page on several ops can say so.
        common: The choices and sizes that all its lines share, in words.
        facts: What is known of the machine and the software, by column.
        findings: Which lines are fastest, a sentence each.
        fits: What copies in pieces cost, where there are such.
        notes: The rule for differences, how near the points come to the copy, and what disturbed them.
        panels: The panels, each with its tables.
        contrasts: The heat maps.
    """

    name: str
    costs: tuple[Finding, ...]
    common: str
    facts: Mapping[str, str]
    findings: tuple[Finding, ...]
    fits: tuple[Fit, ...]
    notes: tuple[str, ...]
    panels: tuple[tuple[Panel, tuple[Table, ...]], ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class Content:
    """The whole report.

    Attributes:
        sweeps: The sweeps' names.
        when: When the first and the last point were begun.
        counts: How many points have each status, and how many there are of a sweep that was interrupted.
        sections: One for each machine that has a latency.
        others: What was not timed, wrong results first.
        commands: Each curve's name and the command that repeats it.
    """

    sweeps: tuple[str, ...]
    when: str
    counts: str
    sections: tuple[Section, ...]
    others: tuple[Outcome, ...]
    commands: tuple[tuple[str, str], ...]

    @property
    def wrong(self) -> tuple[Outcome, ...]:
        """The outcomes that are incorrect or failed."""
        return tuple(outcome for outcome in self.others if is_wrong(outcome.status))


def build_content(rows: Sequence[Row], planned: int = 0) -> Content:
    """Build the report of the rows, their repetitions merged; it says where fewer than planned are there."""
    rows = make_rows_printable(merge_repetitions(rows))
    by_sweep = [[row for row in rows if row[SWEEP] == sweep] for sweep in unique(row[SWEEP] for row in rows)]
    grouped = [curve for own in by_sweep for curve in group_by_curve(own)]
    names = name_curves(grouped)
    counts = Counter(row["status"] for row in rows)
    begun = sorted(str(row["started_at"]) for row in rows if row.get("started_at"))
    commands = [
        (name, curve[0][COMMAND]) for name, curve in zip(names, grouped, strict=True) if curve[0][COMMAND]
    ]
    # The breaches of points that were timed are in their machine's section.
    untimed = [[row for row in curve if row["status"] == "verified"] for curve in grouped]
    return Content(
        sweeps=tuple(unique(str(row[SWEEP]) for row in rows)),
        when=_format_period(begun),
        counts=(f"{len(rows)} of {planned} points: " if len(rows) < planned else "")
        + join_words([f"{counts[status]} {status}" for status in STATUSES if counts[status]]),
        sections=tuple(_build_section(machine) for machine in group_by_machine(rows)),
        others=(*reversed(group_outcomes(grouped, names)), *group_breaches(untimed, names)),
        commands=tuple(commands),
    )


def _build_section(machine: Machine) -> Section:
    axes = find_axes(machine.ranked)
    tasks = list_tasks(machine)
    costs = [describe_control(tasks), *describe_costs(tasks), *describe_choices(tasks)] if tasks else []
    # What the costs say of layouts is not said twice.
    others = list_findings([axis for axis in axes if not (tasks and axis.column == "layout")])
    findings = [*list_confirmed(machine), *others]
    notes = [
        describe_rule(machine) if findings or costs else "",
        compare_with_copy(machine),
        *describe_breaches(machine),
        *describe_disturbances(machine),
    ]
    return Section(
        name=machine.name,
        costs=tuple(costs),
        common=_describe_common(machine.lines),
        facts=_collect_facts([row for line in machine.lines for row in line.points]),
        findings=tuple(findings if has_comparable_points(machine) else ()),
        fits=tuple(fit_ways(machine.ranked)),
        notes=tuple(filter(None, notes)),
        panels=tuple((panel, _make_tables(panel)) for panel in make_panels(machine.lines)),
        contrasts=tuple(contrast for axis in axes for contrast in make_contrasts(axis)),
    )


def _describe_common(lines: Sequence[Line]) -> str:
    """Describe the choices and sizes that do not vary."""
    equal = [column for column in _COMMON if len({line.key[column] for line in lines}) == 1]
    chosen = [column for column in equal if lines[0].key[column] not in ("auto", None, "")]
    for key, default in DEFAULTS.items():
        values = {line.key.get(key, default) for line in lines} - {default, None}
        if key not in _COMMON and len(values) == 1 and all(line.key.get(key) in values for line in lines):
            chosen.append(key)
    return ", ".join(format_column(lines[0].key, column) for column in chosen)


def _make_tables(panel: Panel) -> tuple[Table, ...]:
    """Make tables of the panel's points, with few enough lines in each that it fits on paper."""
    group = {one.name: one.line for one in panel.series}
    sizes = sorted({row["num_tokens"] for line in group.values() for row in line.points})
    ranked = {name: line for name, line in group.items() if not line.is_copy}
    leaders = {size: find_fastest(ranked, size) if len(ranked) > 1 else () for size in sizes}
    names = list(group)
    abreast = math.ceil(len(names) / math.ceil(len(names) / _ABREAST))
    tables = []
    for start in range(0, len(names), abreast):
        own = names[start : start + abreast]
        lines = [
            (size, tuple(_make_cell(group[name].at(size), leaders[size] == (name,)) for name in own))
            for size in sizes
        ]
        tables.append(Table(tuple(own), tuple(lines)))
    return tuple(tables)


def _make_cell(row: Row | None, fastest: bool) -> Cell | None:
    if row is None:
        return None
    low, high = interval(row)
    return Cell(
        number(row["latency_us"]),
        f"{number(low)}{DASH}{number(high)}",
        percent(row.get("copy_fraction")),
        optional(row.get("gb_per_s")),
        fastest,
    )


def _collect_facts(rows: Sequence[Row]) -> dict[str, str]:
    """Collect each column about the machine, its state or the software, with its values."""
    facts = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        values = unique(row[column] for row in rows if row.get(column) is not None)
        if column in _NOT_THE_MACHINES or not values:
            continue
        numbers = [
            value for value in values if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if len(values) == 1:
            facts[column] = str(values[0])
        elif len(numbers) == len(values):
            facts[column] = f"{min(numbers):g} to {max(numbers):g}"
        else:
            facts[column] = ", ".join(str(value) for value in values[:4]) + (", …" if len(values) > 4 else "")
    return facts


def _format_period(begun: Sequence[str]) -> str:
    """Format as `2026-11-21 17:13:07 to 17:13:24`, with the second day where it differs."""
    if not begun:
        return ""
    first, last = (text[:19].replace("T", " ") for text in (begun[0], begun[-1]))
    zone = begun[0][19:].partition("+")[1] + begun[0].partition("+")[2]
    end = last if last[:10] != first[:10] else last[11:]
    return f"{first} to {end} {'UTC' if zone in ('+00:00', '') else zone}"
