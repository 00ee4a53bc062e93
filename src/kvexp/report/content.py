"""Build what a report says; the HTML page and the Markdown are both rendered from it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvexp.measurement import STATUSES, Row, is_wrong
from kvexp.report import advice, layout_costs
from kvexp.report.cost_model import Fit, fit_ways
from kvexp.report.curves import Machine, group_by_machine, make_rows_printable, name_curves
from kvexp.report.data_sheet import compare_with_data_sheet
from kvexp.report.facts import State, collect_facts, collect_states, describe_common
from kvexp.report.findings import (
    Finding,
    compare_with_copy,
    describe_breaches,
    describe_disturbances,
    describe_excluded,
    describe_rule,
    describe_untold,
    has_comparable_points,
    list_confirmed,
    list_findings,
)
from kvexp.report.format import join_words
from kvexp.report.layout_choice import describe_choices, make_title
from kvexp.report.layout_costs import describe_control, describe_costs
from kvexp.report.outcomes import Outcome, group_breaches, group_outcomes, unique
from kvexp.report.panels import Panel, make_panels
from kvexp.report.regimes import Best, describe_regimes, find_best
from kvexp.report.side_by_side import SideBySide, put_side_by_side
from kvexp.report.speedups import Contrast, find_axes, make_contrasts
from kvexp.report.tables import Table, make_tables
from kvexp.results.labels import group_by_curve
from kvexp.results.load import COMMAND, SWEEP
from kvexp.results.merge import merge_repetitions


@dataclass(frozen=True)
class Section:
    """One machine's part of the report, or that of several side by side, which takes nothing.

    Attributes:
        name: The machine's, or the devices'.
        title: What to take, or what was measured where nothing can be called fastest; empty of several.
        advice: What to take and why, a sentence each.
        costs: What each layout costs, where a page on several ops can say so.
        common: The choices and sizes that all its lines share, in words.
        facts: What is known of the machine and the software, by column.
        state: The machine's state while each line was measured.
        findings: Which lines are fastest, a sentence each.
        fits: What copies in pieces cost, where there are such.
        notes: The rule for differences, how near the points come to the copy, what disturbed them, and
            between which no difference can be told.
        panels: The panels, each with its tables.
        contrasts: The heat maps.
        best: The least latency of each task at each num_tokens.
        regimes: What the regimes are that figures mark; empty where they mark none.
    """

    name: str
    title: str
    advice: tuple[Finding, ...]
    costs: tuple[Finding, ...]
    common: str
    facts: Mapping[str, str]
    state: State
    findings: tuple[Finding, ...]
    fits: tuple[Fit, ...]
    notes: tuple[str, ...]
    panels: tuple[tuple[Panel, tuple[Table, ...]], ...]
    contrasts: tuple[Contrast, ...]
    best: Best
    regimes: str


@dataclass(frozen=True)
class Content:
    """The whole report.

    Attributes:
        sweeps: The sweeps' names.
        when: When the first and the last point were begun.
        counts: How many points have each status, and how many there are of a sweep that was interrupted.
        sections: One for several machines that measured a curve alike, and one for each that has a latency.
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
    def title(self) -> str:
        """The answer, for each machine."""
        own = [section for section in self.sections if section.title]
        if len(own) == 1:
            return own[0].title
        return "; ".join(f"{section.name.partition(',')[0]}: {section.title}" for section in own)

    @property
    def wrong(self) -> tuple[Outcome, ...]:
        """The outcomes that are incorrect or failed."""
        return tuple(outcome for outcome in self.others if is_wrong(outcome.status))


def build_content(rows: Sequence[Row], planned: int = 0) -> Content:
    """Build the report of the rows, their repetitions merged; it says where fewer than planned are there."""
    measured = len(rows)
    rows = make_rows_printable(merge_repetitions(rows))
    by_sweep = [[row for row in rows if row[SWEEP] == sweep] for sweep in unique(row[SWEEP] for row in rows)]
    grouped = [curve for own in by_sweep for curve in group_by_curve(own)]
    names = name_curves(grouped)
    counts = Counter(row["status"] for row in rows)
    begun = sorted(str(row["started_at"]) for row in rows if row.get("started_at"))
    commands = [
        (name, curve[0][COMMAND]) for name, curve in zip(names, grouped, strict=True) if curve[0][COMMAND]
    ]
    machines = group_by_machine(rows)
    beside = put_side_by_side(machines)
    # The breaches of points that were timed are in their machine's section.
    untimed = [[row for row in curve if row["status"] == "verified"] for curve in grouped]
    return Content(
        sweeps=tuple(unique(str(row[SWEEP]) for row in rows)),
        when=_format_period(begun),
        counts=(f"{len(rows)} of {planned} points: " if len(rows) < planned else "")
        + join_words([f"{counts[status]} {status}" for status in STATUSES if counts[status]])
        + (f", from {measured} measurements" if measured > len(rows) else ""),
        sections=(
            *([_compare_machines(beside)] if beside else []),
            *(_build_section(machine) for machine in machines),
        ),
        others=(*reversed(group_outcomes(grouped, names)), *group_breaches(untimed, names)),
        commands=tuple(commands),
    )


def _build_section(machine: Machine) -> Section:
    axes = find_axes(machine.ranked)
    costs = layout_costs.list_tasks(machine)
    choices = describe_choices(costs)
    chosen = [choice for choice in choices if choice.choice]
    tasks = [] if chosen else advice.list_tasks(machine)
    # What the costs say of layouts is not said twice.
    others = [axis for axis in axes if not (costs and axis.column == "layout")]
    findings = [*list_confirmed(machine), *list_findings(others)]
    is_comparable = has_comparable_points(machine)
    notes = [
        describe_rule(machine) if axes or costs else "",
        describe_excluded(machine),
        compare_with_copy(machine),
        compare_with_data_sheet(machine),
        *describe_breaches(machine),
        *describe_disturbances(machine),
        describe_untold(others) if is_comparable else "",
    ]
    return Section(
        name=machine.name,
        title=make_title(choices) or advice.make_title(machine, tasks),
        advice=(*chosen, *advice.describe_tasks(tasks)),
        costs=(
            describe_control(costs),
            *describe_costs(costs),
            *(choice for choice in choices if not choice.choice),
        )
        if costs
        else (),
        common=describe_common(machine.lines),
        facts=collect_facts([row for line in machine.lines for row in line.points]),
        state=collect_states(machine.lines),
        findings=tuple(findings if is_comparable else ()),
        fits=tuple(fit_ways(machine.ranked)),
        notes=tuple(filter(None, notes)),
        panels=tuple((panel, make_tables(panel)) for panel in make_panels(machine.lines)),
        contrasts=tuple(contrast for axis in axes for contrast in make_contrasts(axis)),
        best=find_best(machine.ranked),
        regimes=describe_regimes(machine.ranked),
    )


def _compare_machines(beside: SideBySide) -> Section:
    axis, all_lines = beside.axis, Machine(beside.lines[0].points[0], beside.lines)
    return Section(
        name=beside.name,
        title="",
        advice=(),
        costs=(),
        common=describe_common(beside.lines),
        facts={},
        state=State((), ()),
        findings=tuple(list_findings([axis])),
        fits=(),
        notes=tuple(filter(None, (describe_rule(all_lines), describe_untold([axis])))),
        panels=tuple((panel, make_tables(panel)) for panel in beside.panels),
        contrasts=tuple(make_contrasts(axis)),
        best=find_best(beside.lines),
        regimes="",
    )


def _format_period(begun: Sequence[str]) -> str:
    """Format as `2026-11-21 17:13:07 to 17:13:24`, with the second day where it differs."""
    if not begun:
        return ""
    first, last = (text[:19].replace("T", " ") for text in (begun[0], begun[-1]))
    zone = begun[0][19:].partition("+")[1] + begun[0].partition("+")[2]
    end = last if last[:10] != first[:10] else last[11:]
    return f"{first} to {end} {'UTC' if zone in ('+00:00', '') else zone}"
