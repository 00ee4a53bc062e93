"""Describe the findings: which is fastest where, by how much, and where there is no certain difference."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvexp.bench.contract import describe_column
from kvexp.measurement import Row
from kvexp.report.curves import Line, Machine
from kvexp.report.format import join_or, join_words, number, percent, tokens
from kvexp.report.outcomes import measure_noise
from kvexp.report.speedups import Axis, get_latency_us, is_comparable, judge_points
from kvexp.results.merge import PROCESSES
from kvexp.results.verdict import CPU, ENOUGH_PROCESSES, GPU_FEW, GPU_MANY, MANY_TOKENS

_CHOICES = ("impl", "impl_options", "layout", "dtype", "kv_cache_dtype", "scale", "mode")
"""The axes on which one value can be the fastest; another size or op is another task."""

_MANY = 3  # contexts of an axis above which a count comes before the sentences


@dataclass(frozen=True)
class Finding:
    """One sentence, and the values of a choice that it compares."""

    between: str
    sentence: str


def list_findings(axes: Sequence[Axis]) -> list[Finding]:
    """List a sentence for lines that differ in one choice alone, implementations first; equal ones once."""
    tallies, findings = [], []
    choices = (axis for axis in axes if axis.column in _CHOICES)
    for axis in sorted(choices, key=lambda axis: _CHOICES.index(axis.column)):
        contexts: dict[tuple[str, str], list[str]] = {}
        for context, group in axis.groups.items():
            if sentence := _describe_group(group):
                contexts.setdefault((join_or(list(group)), sentence), []).append(context)
        if sum(map(len, contexts.values())) > _MANY:
            tallies.append(_count_fastest(axis))
        for (between, sentence), own in contexts.items():
            where = f", {join_words([f'with {context}' for context in own])}" if any(own) else ""
            findings.append(Finding(between + where, sentence))
    return [*tallies, *findings]


def list_confirmed(machine: Machine) -> list[Finding]:
    """Compare the lines that several processes measured among others that one did.

    So the report says what came of a sweep that optimised, and measured its best curve and the default anew.
    """
    group = {line.label: line for line in machine.ranked if _count_processes(line) >= ENOUGH_PROCESSES}
    if len(group) < 2 or all(_count_processes(line) > 1 for line in machine.ranked):
        return []
    sentence = _describe_group(group)
    processes = min(map(_count_processes, group.values()))
    return [Finding(f"{join_or(list(group))}, in {processes} processes each", sentence)] if sentence else []


def _count_processes(line: Line) -> int:
    return min(int(row.get(PROCESSES, 1)) for row in line.points)


def _count_fastest(axis: Axis) -> Finding:
    """Count the points at which each value is fastest, over all contexts."""
    counts: Counter[str] = Counter()
    for group in axis.groups.values():
        for num_tokens in _find_shared_sizes(group.values()):
            names = find_fastest(group, num_tokens)
            counts[names[0] if len(names) == 1 else ""] += 1
    won = [f"{name} is fastest at {counts[name]}" for name in axis.values if counts[name]]
    sentence = f"Of {counts.total()} points, {join_words(won)}"
    if not won:
        sentence = f"At none of {counts.total()} points can a fastest one be told"
    elif counts[""]:
        sentence += f"; at {counts['']} no fastest one can be told"
    return Finding(f"{join_or(axis.values)}, over all", f"{sentence}.")


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
    best = f"Of a plain copy's speed the points reach up to {percent(fraction)}: {where}"
    if row["num_tokens"] == most:
        return f"{best}."
    at_most = max(fraction for fraction, _, row in points if row["num_tokens"] == most)
    return f"{best}; at {tokens(most)} up to {percent(at_most)}."


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
    source = f"from the median one of up to {most} processes" if most > 1 else "from one process"
    if most >= ENOUGH_PROCESSES:
        return (
            f"Each point is {source}. A difference counts only where it exceeds the scatter of all processes "
            f"weighed with the {noise} by which processes measuring the same code differ; how many times as "
            "fast is a ratio of geometric means."
        )
    return (
        f"Each point is {source}. A difference counts only where the intervals of two medians are over "
        f"{noise} apart, as far as processes measuring the same code were seen to differ."
    )


def _describe_group(group: Mapping[str, Line]) -> str:
    """Describe which line is fastest at which sizes, largest share first, and where none is."""
    sizes = _find_shared_sizes(group.values())
    leaders: dict[tuple[str, ...], dict[int, float]] = {}
    for num_tokens in sizes:
        names = find_fastest(group, num_tokens)
        leaders.setdefault(names, {})[num_tokens] = _lead(group, num_tokens)
    parts = []
    for names, leads in sorted(leaders.items(), key=lambda item: (len(item[0]), -len(item[1]))):
        where = _describe_sizes(list(leads), sizes)
        if len(names) == 1:
            others = len(group) > 2
            against = "the next" if others else next(name for name in group if name != names[0])
            parts.append(
                f"{names[0]} is fastest {where}, {_format_leads(leads.values())} as fast as {against}"
            )
        else:
            share = "" if len(names) == len(group) else f"{join_words(names)} share the lead and "
            parts.append(f"{share}no difference can be told{' between them' if share else ''} {where}")
    text = "; ".join(parts)
    return f"{text[:1].upper() if text.startswith('no ') else text[:1]}{text[1:]}." if text else ""


def find_fastest(group: Mapping[str, Line], num_tokens: int) -> tuple[str, ...]:
    """Find the fastest line and all that are not certainly slower; return names in the group's order."""
    ranked = _rank(group, num_tokens)
    return tuple(
        name
        for name in group
        if name in ranked and judge_points(next(iter(ranked.values())), ranked[name]).word != "slower"
    )


def _lead(group: Mapping[str, Line], num_tokens: int) -> float:
    """Return how many times as fast as the second line the first one is."""
    first, second, *_ = _rank(group, num_tokens).values()
    return judge_points(first, second).ratio


def _rank(group: Mapping[str, Line], num_tokens: int) -> dict[str, Row]:
    """Return the group's points of that size, fastest first."""
    points = {name: row for name, line in group.items() if (row := line.at(num_tokens)) is not None}
    return dict(sorted(points.items(), key=lambda item: get_latency_us(item[1])))


def _find_shared_sizes(lines: Iterable[Line]) -> list[int]:
    """Find the num_tokens that two or more lines have."""
    counts = Counter(row["num_tokens"] for line in lines for row in line.points)
    return sorted(size for size, count in counts.items() if count > 1)


def _describe_sizes(some: Sequence[int], sizes: Sequence[int]) -> str:
    """Describe the sizes, neighbours joined: `from 2 to 64 and at 256 tokens`, or `at every size`."""
    if len(some) == len(sizes) > 1:
        return f"at every size from {sizes[0]:,} to {tokens(sizes[-1])}"
    runs: list[list[int]] = []
    for size in some:
        if runs and sizes.index(size) == sizes.index(runs[-1][-1]) + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    words = [f"from {run[0]:,} to {run[-1]:,}" if len(run) > 1 else f"at {run[0]:,}" for run in runs]
    return f"{join_words(words)} token{'' if list(some) == [1] else 's'}"


def _format_leads(leads: Iterable[float]) -> str:
    found = sorted(leads)
    low, high = number(found[0]), number(found[-1])
    return f"{low} times" if low == high else f"{low} to {high} times"
