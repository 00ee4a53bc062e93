"""What was found, in words: who is fastest where, by how much, and where no difference can be told."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvexp.bench.contract import describe_column
from kvexp.report.curves import Line, Machine, Row
from kvexp.report.format import listed, number, percent, tokens
from kvexp.report.speedups import Axis, is_enough, latency_us, told
from kvexp.results.load import PROCESSES
from kvexp.results.verdict import CPU, ENOUGH, GPU_FEW, GPU_MANY, MANY_TOKENS

_CHOICES = ("impl", "impl_options", "layout", "dtype", "kv_cache_dtype", "scale", "mode")
"""The axes on which one can be the fastest; other sizes or another op are another task."""

_MANY = 3  # contexts above which a count comes before the sentences


@dataclass(frozen=True)
class Finding:
    """One sentence of the headline, and between which values of which choice it decides."""

    between: str
    sentence: str


def findings(axes: Sequence[Axis]) -> list[Finding]:
    """A sentence for lines that differ in one choice alone, implementations first; contexts may share one."""
    tallies, said = [], []
    asked = (axis for axis in axes if axis.column in _CHOICES)
    for axis in sorted(asked, key=lambda axis: _CHOICES.index(axis.column)):
        contexts: dict[tuple[str, str], list[str]] = {}
        for context, group in axis.groups.items():
            if sentence := _sentence(group):
                contexts.setdefault((_either(list(group)), sentence), []).append(context)
        if sum(map(len, contexts.values())) > _MANY:
            tallies.append(_tally(axis))
        for (between, sentence), own in contexts.items():
            told = f", {listed([f'with {context}' for context in own])}" if any(own) else ""
            said.append(Finding(between + told, sentence))
    return [*tallies, *said]


def _tally(axis: Axis) -> Finding:
    """At how many points each value is fastest, over all contexts."""
    counts: Counter[str] = Counter()
    for group in axis.groups.values():
        for num_tokens in _sizes(group.values()):
            names = fastest(group, num_tokens)
            counts[names[0] if len(names) == 1 else ""] += 1
    won = [f"{name} is fastest at {counts[name]}" for name in axis.values if counts[name]]
    sentence = f"Of {counts.total()} points, {listed(won)}"
    if not won:
        sentence = f"At none of {counts.total()} points can a fastest one be told"
    elif counts[""]:
        sentence += f"; at {counts['']} no fastest one can be told"
    return Finding(f"{_either(axis.values)}, over all", f"{sentence}.")


def _either(values: Sequence[str]) -> str:
    return f"{', '.join(values[:-1])} or {values[-1]}"


def compare_with_copy(machine: Machine) -> str:
    """Say how near the fastest points come to their equal copies; empty where no point has one."""
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


def disturbances(machine: Machine) -> list[str]:
    """What held the machine back while points were measured, as far as it was watched."""
    rows = [row for line in machine.lines for row in line.points]
    held = [row["throttled"] for row in rows if row.get("throttled")]
    others = [row for row in rows if row.get("other_processes")]
    said = []
    if held:
        why = listed(list(dict.fromkeys(held)))
        said.append(f"At {len(held)} of {len(rows)} points the GPU's clocks were held down: {why}.")
    if others:
        said.append(f"At {len(others)} of {len(rows)} points other processes were on the GPU.")
    return said


def breaches(machine: Machine) -> list[str]:
    """Return what of the contract is not kept, or refused, by implementations whose points are right."""
    found: dict[str, list[str]] = {}
    for line in machine.lines:
        for but in dict.fromkeys(describe_column(row.get("contract")) for row in line.points):
            if but:
                found.setdefault(but, []).append(line.label)
    return [f"{listed(names)}: right, but {but}." for but, names in found.items()]


def is_sure(machine: Machine) -> bool:
    """Whether some point of the machine can be called faster than another."""
    return any(is_enough(row) for line in machine.ranked for row in line.points)


def certainty(machine: Machine) -> str:
    """By which rule a difference is told on this machine, or why none is."""
    if not is_sure(machine):
        return (
            "On a CPU, what one process measured is not enough to call anything fastest; "
            "repeat=5 measures in five processes."
        )
    noise = f"{100 * GPU_MANY:.0f} % ({100 * GPU_FEW:.0f} % below {MANY_TOKENS} tokens)"
    if all(str(line.key["device"]).startswith("cpu") for line in machine.lines):
        noise = f"{100 * CPU:.0f} %"
    most = max(row.get(PROCESSES, 1) for line in machine.lines for row in line.points)
    whose = f"the middle one of up to {most} processes" if most > 1 else "one process"
    if most >= ENOUGH:
        return (
            f"Each point is that of {whose}. A difference is told only where it is beyond what all of them "
            f"scatter, which is weighed with the {noise} that processes measuring the same code differ by; "
            "how many times as fast is a ratio of geometric means."
        )
    return (
        f"Each point is that of {whose}. A difference is told only where the intervals of two medians are "
        f"over {noise} apart, as far as processes measuring the same code were seen to differ."
    )


def _sentence(group: Mapping[str, Line]) -> str:
    """Who is fastest at which sizes, largest share first, and where nobody is."""
    sizes = _sizes(group.values())
    leaders: dict[tuple[str, ...], dict[int, float]] = {}
    for num_tokens in sizes:
        names = fastest(group, num_tokens)
        leaders.setdefault(names, {})[num_tokens] = _lead(group, num_tokens)
    parts = []
    for names, leads in sorted(leaders.items(), key=lambda item: (len(item[0]), -len(item[1]))):
        where = _where(list(leads), sizes)
        if len(names) == 1:
            others = len(group) > 2
            against = "the next" if others else next(name for name in group if name != names[0])
            parts.append(f"{names[0]} is fastest {where}, {_times(leads.values())} as fast as {against}")
        else:
            share = "" if len(names) == len(group) else f"{listed(names)} share the lead and "
            parts.append(f"{share}no difference can be told{' between them' if share else ''} {where}")
    text = "; ".join(parts)
    return f"{text[:1].upper() if text.startswith('no ') else text[:1]}{text[1:]}." if text else ""


def fastest(group: Mapping[str, Line], num_tokens: int) -> tuple[str, ...]:
    """The name of the group's fastest line and of all that cannot be told from it, in the group's order."""
    ranked = _ranked(group, num_tokens)
    return tuple(
        name
        for name in group
        if name in ranked and told(next(iter(ranked.values())), ranked[name]).word != "slower"
    )


def _lead(group: Mapping[str, Line], num_tokens: int) -> float:
    """How many times as fast as the second line the first one is."""
    first, second, *_ = _ranked(group, num_tokens).values()
    return told(first, second).ratio


def _ranked(group: Mapping[str, Line], num_tokens: int) -> dict[str, Row]:
    """The group's points of that size, fastest first."""
    there = {name: row for name, line in group.items() if (row := line.at(num_tokens)) is not None}
    return dict(sorted(there.items(), key=lambda item: latency_us(item[1])))


def _sizes(lines: Iterable[Line]) -> list[int]:
    """The num_tokens that two lines or more have."""
    counts: dict[int, int] = {}
    for line in lines:
        for row in line.points:
            counts[row["num_tokens"]] = counts.get(row["num_tokens"], 0) + 1
    return sorted(size for size, count in counts.items() if count > 1)


def _where(some: Sequence[int], sizes: Sequence[int]) -> str:
    """The sizes in words, neighbours joined: `from 2 to 64 and at 256 tokens`, or `at every size`."""
    if len(some) == len(sizes) > 1:
        return f"at every size from {sizes[0]:,} to {tokens(sizes[-1])}"
    runs: list[list[int]] = []
    for size in some:
        if runs and sizes.index(size) == sizes.index(runs[-1][-1]) + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    words = [f"from {run[0]:,} to {run[-1]:,}" if len(run) > 1 else f"at {run[0]:,}" for run in runs]
    return f"{listed(words)} token{'' if list(some) == [1] else 's'}"


def _times(leads: Iterable[float]) -> str:
    found = sorted(leads)
    low, high = number(found[0]), number(found[-1])
    return f"{low} times" if low == high else f"{low} to {high} times"
