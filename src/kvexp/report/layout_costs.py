"""Say in words what each layout costs: to write a step, to read it, to hand a request over."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

from kvexp import op as ops
from kvexp.case import DEFAULTS
from kvexp.measurement import Row
from kvexp.report.curves import Line, Machine, describe, find_varied
from kvexp.report.findings import Finding
from kvexp.report.format import join_words, longer, number, small_percent, tokens
from kvexp.report.speedups import get_latency_us, is_comparable, judge_points, split_processes
from kvexp.results.merge import PROCESSES
from kvexp.results.verdict import Verdict, judge_processes

BASELINE = "NHD"
"""Layout that the others are compared with; where it was not measured, the first one is."""

CONTROL_PROCESSES = 4
"""Processes from which on each half of them scatters; it is judged by that, as all of them are."""

HANDOVER = "transfer"
"""Role of the ops that hand a request over."""

UNTOLD = "no difference can be told"


@dataclass(frozen=True)
class Task:
    """One op at one size in one way, and its point in each layout.

    Attributes:
        role: The op's part in serving, see `kvexp.op.Op`; its name where it has none.
        deed: What a call does, in words.
        way: How, in words: the implementation, and what else varies among the op's lines.
        setting: What its lines have in common, by column.
        points: For each layout its row; the one that others are compared with comes first.
    """

    role: str
    deed: str
    way: str
    setting: Mapping[str, Any]
    points: Mapping[str, Row]

    @property
    def first(self) -> Row:
        """The row that others are compared with."""
        return next(iter(self.points.values()))

    @property
    def size(self) -> int:
        """The `num_tokens` of its rows."""
        return int(self.first["num_tokens"])


def list_tasks(machine: Machine) -> list[Task]:
    """List what was measured in two layouts or more.

    One part of serving alone says what it costs only where requests are handed over: there the way counts.
    """
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in machine.ranked:
        found.setdefault(tuple(value for key, value in line.key.items() if key != "layout"), []).append(line)
    compared = [lines for lines in found.values() if len(lines) > 1]
    ways: dict[str, list[Line]] = {}
    for first, *_ in compared:
        ways.setdefault(first.key["op"], []).append(replace(first, key={**first.key, "layout": ""}))
    tasks = []
    for lines in compared:
        varied = find_varied(ways[lines[0].key["op"]])
        sizes = sorted({row["num_tokens"] for line in lines for row in line.points})
        tasks += [task for size in sizes if (task := _make_task(lines, size, varied))]
    roles = {task.role for task in tasks}
    return tasks if len(roles) > 1 or HANDOVER in roles else []


def describe_control(tasks: Sequence[Task]) -> Finding:
    """Compare the first layout with itself, odd rounds against even ones: a difference there is noise."""
    firsts = dict.fromkeys(next(iter(task.points)) for task in tasks)
    itself = join_words([f"{name} against {name}" for name in firsts])
    found = [
        (task, judge_processes(rounds[::2], rounds[1::2], in_one_sweep=True))
        for task in tasks
        if len(rounds := split_processes(task.first)) >= CONTROL_PROCESSES
    ]
    if not found:
        most = max(task.first.get(PROCESSES, 1) for task in tasks)
        measured = f"in {most} processes" if most > 1 else "in one process"
        return Finding(
            "Control", f"{itself} takes repeat={CONTROL_PROCESSES} or more; this was measured {measured}."
        )
    sentence = f"{itself}, odd rounds against even ones, at {len(found)} point{'s' * (len(found) > 1)}: "
    differing = [(task, verdict) for task, verdict in found if _differs(verdict)]
    if not differing:
        seen = [small_percent(least) for least in sorted(verdict.least_seen for _, verdict in found)]
        between = " to ".join(dict.fromkeys([seen[0], seen[-1]]))
        return Finding("Control", f"{sentence}none found; would have seen {between}.")
    task, verdict = max(differing, key=lambda each: abs(math.log(each[1].ratio)))
    return Finding(
        "Control",
        f"{sentence}a difference at {len(differing)}, where there is none; the largest is "
        f"{longer(verdict.ratio)}, to {task.deed}. Trust no smaller one below.",
    )


def describe_costs(tasks: Sequence[Task]) -> list[Finding]:
    """Describe each task's latency in each layout, and how far it is from the first one's."""
    return [Finding(f"To {task.deed}, by {task.way}", _describe_task(task)) for task in tasks]


def describe_differences(first: str, others: Mapping[str, Verdict]) -> str:
    """Describe verdicts against the first: those that differ, then those of which no difference was found.

    Args:
        first: What the others are compared with, and its latency, in words.
        others: The verdict of each other one, by such words.
    """
    parts = [f"{words}, {longer(verdict.ratio)}" for words, verdict in others.items() if _differs(verdict)]
    alike = {words: verdict.least_seen for words, verdict in others.items() if not _differs(verdict)}
    if alike:
        seen = small_percent(max(alike.values()))
        parts.append(f"{join_words(list(alike))}: none found; would have seen {seen}")
    return f"{'; '.join([first, *parts])}."


def _differs(verdict: Verdict) -> bool:
    return verdict.word in ("faster", "slower")


def _make_task(lines: Sequence[Line], size: int, varied: Sequence[str]) -> Task | None:
    points = {line.key["layout"]: row for line in lines if (row := line.at(size)) is not None}
    if len(points) < 2:
        return None
    if BASELINE in points:
        points = {BASELINE: points[BASELINE]} | points
    row = next(iter(points.values()))
    name, known = row["op"], {column: value for column, value in row.items() if value is not None}
    op = ops.load(name) if name in ops.list_names() else None
    deed = op.deed if op and op.deed else f"call {name} with {tokens(size)}"
    told = {column for _, column, _, _ in Formatter().parse(deed)}
    return Task(
        role=op.role if op and op.role else name,
        deed=deed.format_map(DEFAULTS | known),
        way=describe(lines[0], ["impl", *(column for column in varied if column not in {"impl", *told})]),
        setting=lines[0].key,
        points=points,
    )


def _describe_task(task: Task) -> str:
    words = {layout: _format_point(layout, row) for layout, row in task.points.items()}
    first, *others = task.points
    if not all(map(is_comparable, task.points.values())):
        return f"{', '.join(words.values())}; {UNTOLD}."
    verdicts = {words[name]: judge_points(task.first, task.points[name]) for name in others}
    return describe_differences(words[first], verdicts)


def _format_point(layout: str, row: Row) -> str:
    """Format as `NHD 133 µs`, with the pieces of what is copied in pieces."""
    count = row.get("pieces")
    pieces = f" ({count:,} piece{'' if count == 1 else 's'})" if count else ""
    return f"{layout} {number(get_latency_us(row))} µs{pieces}"
