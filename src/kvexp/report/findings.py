"""Describe the findings: which is fastest where, by how much, and where there is no certain difference."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvexp.bench.contract import describe_column
from kvexp.report.curves import Line, Machine
from kvexp.report.format import join_or, join_words, percent, tokens
from kvexp.report.leaders import describe_sizes, find_fastest, find_lead, find_shared_sizes, format_leads
from kvexp.report.outcomes import measure_noise
from kvexp.report.speedups import Axis, is_comparable
from kvexp.results.merge import PROCESSES
from kvexp.results.verdict import CONFIDENCE, CPU, GPU_FEW, GPU_MANY, MANY_TOKENS

_CHOICES = ("impl", "impl_options", "layout", "dtype", "kv_cache_dtype", "scale", "mode", "device_name")
"""The axes on which one value can be the fastest; another size or op is another task."""

_MOST_VALUES = 8  # named one by one
_MOST_TIES = 3  # said one by one of what cannot be told
_MANY = 3  # contexts of an axis above which a count comes before the sentences
CONFIRMED = 3
"""Processes from which on a line counts as measured anew, beside others of one process."""


@dataclass(frozen=True)
class Finding:
    """One sentence.

    Attributes:
        between: The values of a choice that it compares, or what it says to take and when.
        sentence: The sentence.
        choice: What it says to take; empty where it takes nothing.
    """

    between: str
    sentence: str
    choice: str = ""


def list_findings(axes: Sequence[Axis]) -> list[Finding]:
    """List a sentence for lines that differ in one choice alone, implementations first; equal ones once.

    What cannot be told is left to `describe_untold`.
    """
    tallies, findings = [], []
    for axis in _sort_choices(axes):
        contexts = _group_contexts(axis, _describe_leads)
        if contexts and len(axis.groups) > _MANY:
            tallies.append(_count_fastest(axis))
        findings += [
            Finding(f"{names}{_format_contexts(own)}", said) for (names, said), own in contexts.items()
        ]
    return [*tallies, *findings]


def describe_untold(axes: Sequence[Axis]) -> str:
    """Describe in one sentence between which values no difference can be told, and where; empty for none."""
    parts = [
        f"{names}{_format_contexts(own)} {where}"
        for axis in _sort_choices(axes)
        for (names, where), own in _group_contexts(axis, _describe_ties).items()
    ]
    if len(parts) > _MOST_TIES:
        parts = [*parts[:_MOST_TIES], f"and {len(parts) - _MOST_TIES} more"]
    return f"No difference can be told: {'; '.join(parts)}." if parts else ""


def list_confirmed(machine: Machine) -> list[Finding]:
    """Compare the two lines that several processes measured among others that one did.

    So the report says what came of a sweep that optimised, and measured its best curve and the default anew.
    """
    group = {line.label: line for line in select_confirmed(machine.ranked)}
    processes = min(map(_count_processes, group.values()), default=0)
    if len(group) != 2 or processes == 1 or all(_count_processes(line) > 1 for line in machine.ranked):
        return []
    sentence = _describe_leads(group) or f"No difference can be told {_describe_ties(group)}."
    return [Finding(f"{join_or(list(group))}, in {processes} processes each", sentence)]


def select_confirmed(lines: Sequence[Line]) -> list[Line]:
    """Select the lines that enough processes measured, where there are two, others being of one; else all.

    The fastest of many lines of one process is partly so by luck.
    """
    confirmed = [line for line in lines if _count_processes(line) >= CONFIRMED]
    return confirmed if len(confirmed) > 1 else list(lines)


def _count_processes(line: Line) -> int:
    return min(int(row.get(PROCESSES, 1)) for row in line.points)


def _count_fastest(axis: Axis) -> Finding:
    """Count the points at which each value is fastest, over all contexts."""
    counts: Counter[str] = Counter()
    for group in axis.groups.values():
        for num_tokens in find_shared_sizes(group.values()):
            names = find_fastest(group, num_tokens)
            counts[names[0] if len(names) == 1 else ""] += 1
    won = [f"{name} is fastest at {counts[name]}" for name in axis.values if counts[name]]
    sentence = f"Of {counts.total()} points, {join_words(won)}"
    if counts[""]:
        sentence += f"; at {counts['']} no fastest one can be told"
    return Finding(f"{_name_values(axis, axis.values)}, over all", f"{sentence}.")


def compare_with_copy(machine: Machine) -> str:
    """Say how near the points come to their equal copies; empty where no point has a copy."""
    points = [
        (row["copy_fraction"], line, row)
        for line in machine.ranked
        for row in line.points
        if row.get("copy_fraction") is not None
    ]
    if not points:
        return ""
    fraction, line, row = max(points, key=lambda point: point[0])
    most = max(row["num_tokens"] for _, _, row in points)
    where = f"{line.label} at {tokens(row['num_tokens'])}"
    best = f"The best point reaches {percent(fraction)} of an equal copy's speed: {where}"
    if row["num_tokens"] == most:
        return f"{best}."
    at_most = max(fraction for fraction, _, row in points if row["num_tokens"] == most)
    return f"{best}. At {tokens(most)} the best reaches {percent(at_most)}."


def describe_excluded(machine: Machine) -> str:
    """Say which lines are compared with nothing, since a point was wrong; empty where there is none."""
    wrong = [line.label for line in machine.lines if not line.is_right]
    return f"{join_words(wrong)}: wrong or failed at a point, so compared with nothing." if wrong else ""


def describe_disturbances(machine: Machine) -> list[str]:
    """Describe what was seen to slow the machine down while points were measured."""
    rows = [row for line in machine.lines for row in line.points]
    held = [row["throttled"] for row in rows if row.get("throttled")]
    others = [row for row in rows if row.get("other_processes")]
    sentences = []
    if held:
        why = join_words(list(dict.fromkeys(held)))
        sentences.append(f"At {len(held)} of {len(rows)} points the GPU's clocks were held down: {why}.")
    if others:
        sentences.append(f"At {len(others)} of {len(rows)} points other processes were on the GPU.")
    if noise := [width for row in rows if (width := measure_noise(row))]:
        sentences.append(
            f"At {len(noise)} of {len(rows)} points p20 to p80 is up to {percent(max(noise))} of the median "
            "wide: something else ran."
        )
    return sentences


def describe_breaches(machine: Machine) -> list[str]:
    """Describe the clauses of the contract that right implementations break or refuse."""
    found: dict[str, list[str]] = {}
    for line in machine.lines:
        for but in dict.fromkeys(describe_column(row.get("contract")) for row in line.points):
            if but:
                found.setdefault(but, []).append(line.label)
    return [f"{join_words(names)}: right, but {but}." for but, names in found.items()]


def has_comparable_points(machine: Machine) -> bool:
    """Return whether some point of the machine can be called faster than another."""
    return any(is_comparable(row) for line in machine.ranked for row in line.points)


def describe_rule(machine: Machine) -> str:
    """Describe the rule by which points differ on this machine, or why there is none."""
    if not has_comparable_points(machine):
        return (
            "On a CPU, what one process measured is not enough to call anything fastest; "
            "repeat=5 measures in five processes."
        )
    noise = f"{100 * GPU_MANY:.0f} % ({100 * GPU_FEW:.0f} % below {MANY_TOKENS} tokens)"
    if all(str(line.key["device"]).startswith("cpu") for line in machine.lines):
        noise = f"{100 * CPU:.0f} %"
    most = max(row.get(PROCESSES, 1) for line in machine.lines for row in line.points)
    seen = f"the {noise} by which two processes were seen to differ on the same code"
    if most > 1:
        return (
            f"Each point is from the median one of up to {most} processes. A difference counts where it is "
            f"larger than the noise: the scatter of these processes, moderated by {seen}. How many times "
            "as fast is a ratio of geometric means."
        )
    return (
        "Each point is from one process. A difference counts where it is larger than the noise: the "
        f"intervals of both medians, and {seen} (95 % of pairs), at {100 * CONFIDENCE} % confidence."
    )


def _sort_choices(axes: Sequence[Axis]) -> list[Axis]:
    choices = (axis for axis in axes if axis.column in _CHOICES)
    return sorted(choices, key=lambda axis: _CHOICES.index(axis.column))


def _group_contexts(
    axis: Axis, describe: Callable[[Mapping[str, Line]], str]
) -> dict[tuple[str, str], list[str]]:
    """Group the axis's contexts by the values and by what is said of these; leave out where nothing is."""
    found: dict[tuple[str, str], list[str]] = {}
    for context, group in axis.groups.items():
        if said := describe(group):
            found.setdefault((_name_values(axis, list(group)), said), []).append(context)
    return found


def _name_values(axis: Axis, values: Sequence[str]) -> str:
    """Name the values, or say how many there are of which column."""
    return join_or(values) if len(values) <= _MOST_VALUES else f"{len(values)} values of {axis.column}"


def _format_contexts(contexts: Sequence[str]) -> str:
    return f", {join_words([f'with {context}' for context in contexts])}" if any(contexts) else ""


def _describe_leads(group: Mapping[str, Line]) -> str:
    """Describe which line is fastest at which sizes, largest share first; empty where none is."""
    parts = []
    sizes = find_shared_sizes(group.values())
    leaders = _find_leaders(group, sizes)
    for names, leads in sorted(leaders.items(), key=lambda item: (len(item[0]), -len(item[1]))):
        where = describe_sizes(list(leads), sizes)
        if len(names) == 1:
            others = len(group) > 2
            against = "the next" if others else next(name for name in group if name != names[0])
            parts.append(
                f"{names[0]} is fastest {where}, {format_leads(leads.values())} as fast as {against}"
            )
        elif len(names) < len(group):
            parts.append(f"{join_words(names)} share the lead {where}")
    return f"{'; '.join(parts)}." if parts else ""


def _describe_ties(group: Mapping[str, Line]) -> str:
    """Describe at which sizes none can be told from any other; empty where there is no such size."""
    sizes = find_shared_sizes(group.values())
    ties = [
        size
        for names, leads in _find_leaders(group, sizes).items()
        if len(names) == len(group)
        for size in leads
    ]
    return describe_sizes(sorted(ties), sizes) if ties else ""


def _find_leaders(group: Mapping[str, Line], sizes: Sequence[int]) -> dict[tuple[str, ...], dict[int, float]]:
    """Find for all that lead together somewhere at which sizes, and the ratio of the second to the first."""
    leaders: dict[tuple[str, ...], dict[int, float]] = {}
    for num_tokens in sizes:
        leaders.setdefault(find_fastest(group, num_tokens), {})[num_tokens] = find_lead(group, num_tokens)
    return leaders
