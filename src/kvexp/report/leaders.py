"""Find which lines of a group are fastest at which sizes, and say at which and by how much."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from kvexp.measurement import Row
from kvexp.report.curves import Line
from kvexp.report.format import join_words, number, tokens
from kvexp.report.speedups import get_latency_us, judge_points


def find_fastest(group: Mapping[str, Line], num_tokens: int) -> tuple[str, ...]:
    """Find the fastest line and all that are not certainly slower; return names in the group's order."""
    ranked = rank(group, num_tokens)
    return tuple(
        name
        for name in group
        if name in ranked and judge_points(next(iter(ranked.values())), ranked[name]).word != "slower"
    )


def find_lead(group: Mapping[str, Line], num_tokens: int) -> float:
    """Return how many times as fast as the second line the first one is."""
    first, second, *_ = rank(group, num_tokens).values()
    return judge_points(first, second).ratio


def rank(group: Mapping[str, Line], num_tokens: int) -> dict[str, Row]:
    """Return the group's points of that size, fastest first."""
    points = {name: row for name, line in group.items() if (row := line.at(num_tokens)) is not None}
    return dict(sorted(points.items(), key=lambda item: get_latency_us(item[1])))


def find_shared_sizes(lines: Iterable[Line]) -> list[int]:
    """Find the num_tokens that two or more lines have."""
    counts = Counter(row["num_tokens"] for line in lines for row in line.points)
    return sorted(size for size, count in counts.items() if count > 1)


def describe_sizes(some: Sequence[int], sizes: Sequence[int]) -> str:
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


def format_leads(leads: Iterable[float]) -> str:
    """Format ratios as `1.05 times` or `1.03 to 1.05 times`."""
    found = sorted(leads)
    low, high = number(found[0]), number(found[-1])
    return f"{low} times" if low == high else f"{low} to {high} times"
