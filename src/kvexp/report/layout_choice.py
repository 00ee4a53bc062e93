"""Say which layout to choose, without disaggregation and with it, no more surely than the figures do."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvexp.measurement import Row
from kvexp.report.findings import Finding
from kvexp.report.format import join_or, join_words, number
from kvexp.report.layout_costs import HANDOVER, UNTOLD, Task, describe_differences
from kvexp.report.speedups import get_latency_us, is_comparable, judge_points
from kvexp.results.load import SWEEP
from kvexp.results.verdict import Verdict, choose_word

STEP = ("write", "read")
"""Roles of ops that a step does in each layer; a request is handed over once, in all layers."""

_WAYS = ("op", "impl", "impl_options", "layout", "mode", "num_blocks", SWEEP)
_CHOOSE = ", choose "
_DESTINATION = ("tp_from", "tp_to", "to")
"""The columns in which a write, a read and a transfer of one model may differ."""


@dataclass(frozen=True)
class Part:
    """One part of the sum that is chosen by.

    Attributes:
        rows: Of each layout the row of its fastest way.
        ways: That way in words.
        layers: How many times the call is made.
    """

    rows: Mapping[str, Row]
    ways: Mapping[str, str]
    layers: int = 1

    def get_us(self, layout: str) -> float:
        """Return the time that it takes in a layout."""
        return self.layers * get_latency_us(self.rows[layout])


def describe_choices(tasks: Sequence[Task]) -> list[Finding]:
    """Describe what to choose for each model of which the writes and the reads of some size were measured."""
    models: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        key = tuple(value for column, value in task.setting.items() if column not in (*_WAYS, *_DESTINATION))
        models.setdefault(key, []).append(task)
    return [finding for own in models.values() for finding in _choose_for_model(own)]


def make_title(choices: Sequence[Finding]) -> str:
    """Make a title of what is chosen when; empty where nothing is."""
    found: dict[str, dict[str, None]] = {}
    for choice in choices:
        if choice.choice:
            when = choice.between.removesuffix(f"{_CHOOSE}{choice.choice}").lower()
            found.setdefault(choice.choice, {})[when] = None
    title = "; ".join(f"choose {names} {join_words(list(whens))}" for names, whens in found.items())
    return title[:1].upper() + title[1:]


def _choose_for_model(tasks: Sequence[Task]) -> list[Finding]:
    size, step = _find_step(tasks)
    if not step:
        return []
    layers = step[0].layers
    where = f"in {layers:,} layers" if layers > 1 else "in one layer"
    what = f"To write and to read a step of {size:,} tokens, {where}"
    found = [_choose("Without disaggregation", what, step, _find_shared(step))]
    for own in _group_handovers(tasks):
        handover = _take_fastest(own)
        if len(_find_shared([*step, handover])) > 1:
            found.append(_choose_with_handover(own[0].deed, step, handover))
    return found


def _find_step(tasks: Sequence[Task]) -> tuple[int, list[Part]]:
    """Return the largest size of which two layouts have all parts of a step, and these; else none."""
    for size in sorted({task.size for task in tasks}, reverse=True):
        own = [[task for task in tasks if (task.role, task.size) == (role, size)] for role in STEP]
        if all(own):
            parts = [_take_fastest(some, int(some[0].first.get("num_layers") or 1)) for some in own]
            if len(_find_shared(parts)) > 1:
                return size, parts
    return 0, []


def _group_handovers(tasks: Sequence[Task]) -> list[list[Task]]:
    """Group the largest transfers by where they go."""
    found: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        if task.role == HANDOVER:
            found.setdefault(tuple(task.setting.get(column) for column in _DESTINATION), []).append(task)
    return [[task for task in own if task.size == max(one.size for one in own)] for own in found.values()]


def _take_fastest(tasks: Sequence[Task], layers: int = 1) -> Part:
    fastest: dict[str, Task] = {}
    for task in tasks:
        for layout, row in task.points.items():
            best = fastest.get(layout)
            if best is None or get_latency_us(row) < get_latency_us(best.points[layout]):
                fastest[layout] = task
    rows = {layout: task.points[layout] for layout, task in fastest.items()}
    return Part(rows, {layout: task.way for layout, task in fastest.items()}, layers)


def _find_shared(parts: Sequence[Part]) -> list[str]:
    """Find the layouts of which all parts were measured."""
    return [layout for layout in parts[0].rows if all(layout in part.rows for part in parts)]


def _choose(when: str, what: str, parts: Sequence[Part], layouts: Sequence[str], more: str = "") -> Finding:
    """Choose the layout of the least sum, and those of which no difference from it is found."""
    sums = {
        layout: _sum_us(parts, layout) for layout in sorted(layouts, key=lambda name: _sum_us(parts, name))
    }
    words = {layout: f"{layout} {number(us)} µs" for layout, us in sums.items()}
    best, *others = sums
    if not all(is_comparable(part.rows[layout]) for part in parts for layout in layouts):
        return Finding(when, f"{what}: {', '.join(words.values())}; {UNTOLD}.")
    verdicts = {name: _judge_sums(parts, best, name) for name in others}
    chosen = [best, *(name for name, verdict in verdicts.items() if verdict.word != "slower")]
    names = join_or(chosen) if len(chosen) < len(sums) else "any of these layouts"
    differences = describe_differences(words[best], {words[name]: verdicts[name] for name in others})
    return Finding(f"{when}{_CHOOSE}{names}", f"{what}: {differences}{more}", names)


def _choose_with_handover(deed: str, step: Sequence[Part], handover: Part) -> Finding:
    parts = [*step, handover]
    layouts = _find_shared(parts)
    best, first = (min(layouts, key=lambda name: _sum_us(some, name)) for some in (parts, step))
    what = f"Such a step, and once to {deed}, each by its fastest way ({best}: {handover.ways[best]})"
    more = ""
    if best != first and _judge_sums(step, first, best).word == "slower":
        lost = _sum_us(step, best) - _sum_us(step, first)
        saved = handover.get_us(first) - handover.get_us(best)
        more = (
            f" A step takes {number(lost)} µs longer in {best} than in {first}: after {saved / lost:,.0f} "
            f"steps that is the {number(saved)} µs by which a request is handed over sooner."
        )
    return _choose("With disaggregation", what, parts, layouts, more)


def _sum_us(parts: Sequence[Part], layout: str) -> float:
    return sum(part.get_us(layout) for part in parts)


def _judge_sums(parts: Sequence[Part], baseline: str, candidate: str) -> Verdict:
    """Judge two sums: each part's interval counts with the part's share, as if all erred to the same side."""
    total = _sum_us(parts, baseline)
    shares = [part.get_us(baseline) / total for part in parts]
    verdicts = [judge_points(part.rows[baseline], part.rows[candidate]) for part in parts]

    def add(values: Iterable[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    low, high = add(verdict.low for verdict in verdicts), add(verdict.high for verdict in verdicts)
    return Verdict(choose_word(low, high), add(verdict.ratio for verdict in verdicts), low, high)
