"""What a report says, before it is a page or Markdown: both are made of this."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kvexp.case import Case
from kvexp.measurement import STATUSES, Measurement, Statistics
from kvexp.report import findings as headline
from kvexp.report.curves import Line, Machine, machines
from kvexp.report.format import DASH, listed, number, optional, percent
from kvexp.report.outcomes import Outcome, breaches, outcomes, unique
from kvexp.report.panels import Panel, panels
from kvexp.report.speedups import Contrast, axes, contrasts
from kvexp.results.load import COMMAND, LATENCIES, PROCESSES, SWEEP, across
from kvexp.results.rows import curves, labels, word
from kvexp.results.verdict import interval

Row = Mapping[str, Any]

_NOT_THE_MACHINES = {
    *(column.name for kind in (Case, Measurement, Statistics) for column in fields(kind)),
    *("gb_per_s", "copy_fraction", "schema", SWEEP, COMMAND, PROCESSES, LATENCIES),
}

_ABREAST = 3
_WORDS = (
    *(
        "op",
        "impl",
        "layout",
        "dtype",
        "kv_cache_dtype",
        "mode",
        "timer",
        "workload",
        "num_heads",
        "head_size",
    ),
    *("head_size_v", "block_size", "num_blocks", "slots"),
)


@dataclass(frozen=True)
class Cell:
    """One point in a table, in words."""

    latency: str
    between: str
    copy: str
    gb_per_s: str
    fastest: bool


@dataclass(frozen=True)
class Table:
    """The points of a panel: a line for each num_tokens, a cell or None for each of the names."""

    names: tuple[str, ...]
    lines: tuple[tuple[int, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True)
class Section:
    """One machine's part of the report.

    Attributes:
        name: The machine's.
        common: What all its lines have in common, in words.
        facts: What is known of the machine and the software, by column.
        findings: The headline, a sentence each.
        notes: By which rule differences are told, how near the copy it comes, and what disturbed it.
        panels: The figures' lines, each with its tables.
        contrasts: The heat maps.
    """

    name: str
    common: str
    facts: Mapping[str, str]
    findings: tuple[headline.Finding, ...]
    notes: tuple[str, ...]
    panels: tuple[tuple[Panel, tuple[Table, ...]], ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class Content:
    """The whole report.

    Attributes:
        sweeps: The sweeps' names.
        when: When the first and the last point were begun.
        counts: How many points ended how.
        sections: One for each machine that has a latency.
        others: What was not timed, wrong results first.
        commands: What repeats each curve, by its name.
    """

    sweeps: tuple[str, ...]
    when: str
    counts: str
    sections: tuple[Section, ...]
    others: tuple[Outcome, ...]
    commands: tuple[tuple[str, str], ...]

    @property
    def wrong(self) -> tuple[Outcome, ...]:
        """What is incorrect or failed."""
        return tuple(outcome for outcome in self.others if outcome.status in ("incorrect", "failed"))


def content(rows: Sequence[Row]) -> Content:
    """What the rows say, those of several repetitions together."""
    rows = across(rows)
    by_sweep = [[row for row in rows if row[SWEEP] == sweep] for sweep in unique(row[SWEEP] for row in rows)]
    grouped = [curve for own in by_sweep for curve in curves(own)]
    names = _names(grouped)
    counts = Counter(row["status"] for row in rows)
    begun = sorted(str(row["started_at"]) for row in rows if row.get("started_at"))
    commands = [
        (name, curve[0][COMMAND]) for name, curve in zip(names, grouped, strict=True) if curve[0][COMMAND]
    ]
    # Of points that were timed their machine's section tells.
    untimed = [[row for row in curve if row["status"] == "verified"] for curve in grouped]
    return Content(
        sweeps=tuple(unique(str(row[SWEEP]) for row in rows)),
        when=_when(begun),
        counts=listed([f"{counts[status]} {status}" for status in STATUSES if counts[status]]),
        sections=tuple(_section(machine) for machine in machines(rows)),
        others=(*reversed(outcomes(grouped, names)), *breaches(untimed, names)),
        commands=tuple(commands),
    )


def _section(machine: Machine) -> Section:
    compared = axes(machine.ranked)
    said = headline.findings(compared)
    notes = [
        headline.certainty(machine) if said else "",
        headline.compare_with_copy(machine),
        *headline.breaches(machine),
        *headline.disturbances(machine),
    ]
    return Section(
        name=machine.name,
        common=_common(machine.lines),
        facts=_facts([row for line in machine.lines for row in line.points]),
        findings=tuple(said if headline.is_sure(machine) else ()),
        notes=tuple(filter(None, notes)),
        panels=tuple((panel, _tables(panel)) for panel in panels(machine.lines)),
        contrasts=tuple(contrast for axis in compared for contrast in contrasts(axis)),
    )


def _names(grouped: Sequence[Sequence[Row]]) -> list[str]:
    """A name for each curve, its sweep behind it where several were measured alike."""
    names = [name or labels([curve])[0] for name, curve in zip(labels(grouped), grouped, strict=True)]
    times = Counter(names)
    return [
        f"{name} ({curve[0][SWEEP]})" if times[name] > 1 else name
        for name, curve in zip(names, grouped, strict=True)
    ]


def _common(lines: Sequence[Line]) -> str:
    """The choices and sizes that do not vary, in words."""
    alike = [column for column in _WORDS if len({line.key[column] for line in lines}) == 1]
    shown = [column for column in alike if lines[0].key[column] not in ("auto", None, "")]
    return ", ".join(word(lines[0].key, column) for column in shown)


def _tables(panel: Panel) -> tuple[Table, ...]:
    """The panel's points, a few lines of it to a table, so that a table fits on paper."""
    group = {one.name: one.line for one in panel.series}
    sizes = sorted({row["num_tokens"] for line in group.values() for row in line.points})
    ranked = {name: line for name, line in group.items() if not line.is_copy}
    leaders = {size: headline.fastest(ranked, size) if len(ranked) > 1 else () for size in sizes}
    names = list(group)
    abreast = math.ceil(len(names) / math.ceil(len(names) / _ABREAST))
    tables = []
    for start in range(0, len(names), abreast):
        own = names[start : start + abreast]
        lines = [
            (size, tuple(_cell(group[name].at(size), leaders[size] == (name,)) for name in own))
            for size in sizes
        ]
        tables.append(Table(tuple(own), tuple(lines)))
    return tuple(tables)


def _cell(row: Row | None, fastest: bool) -> Cell | None:
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


def _facts(rows: Sequence[Row]) -> dict[str, str]:
    """Every column that is about the machine or the software, or about its state, with what it held."""
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


def _when(begun: Sequence[str]) -> str:
    """`2026-11-21 17:13:07 to 17:13:24`, with the day a second time where it is another."""
    if not begun:
        return ""
    first, last = (text[:19].replace("T", " ") for text in (begun[0], begun[-1]))
    zone = begun[0][19:].partition("+")[1] + begun[0].partition("+")[2]
    end = last if last[:10] != first[:10] else last[11:]
    return f"{first} to {end} {'UTC' if zone in ('+00:00', '') else zone}"
