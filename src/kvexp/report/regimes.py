"""Find the best time of each task, and what limits it: the launch, the L2 cache, the memory."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kvexp.measurement import Row
from kvexp.report.curves import Line

Best = Mapping[tuple[Any, ...], Mapping[int, float]]
"""The least latency in µs of each task (`Line.task`) at each num_tokens."""

LAUNCH, L2, MEMORY = "launch floor", "fits the L2", "memory"
_FLOOR = 2
"""Times an empty kernel's time up to which a call's time counts as that of its launch."""
_LEGEND = (
    f"Launch floor: the fastest takes up to {_FLOOR} times as long as an empty kernel. "
    "Fits the L2: the bytes that a call must read and write do. Memory: they do not."
)


def find_best(lines: Sequence[Line]) -> Best:
    """Find the least latency of each task at each size."""
    best: dict[tuple[Any, ...], dict[int, float]] = {}
    for line in lines:
        own = best.setdefault(line.task, {})
        for row in line.points:
            size = row["num_tokens"]
            own[size] = min(row["latency_us"], own.get(size, row["latency_us"]))
    return best


def find_regimes(rows: Sequence[Row]) -> list[tuple[str, int, int]]:
    """Find the regimes of one task: each one's name, and its first and its last num_tokens.

    Args:
        rows: The task's points; at each size the fastest counts.
    """
    fastest: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: -row["latency_us"]):
        fastest[row["num_tokens"]] = row
    found: list[tuple[str, int, int]] = []
    for size, row in sorted(fastest.items()):
        name = _name_regime(row)
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1], size)
        elif name:
            found.append((name, size, size))
    return found


def describe_regimes(lines: Sequence[Line]) -> str:
    """Describe the regimes that a figure of times over the best marks; empty where there is none."""
    tasks = Counter(line.task for line in lines)
    compared = [row for line in lines if tasks[line.task] > 1 for row in line.points]
    return _LEGEND if any(map(_name_regime, compared)) else ""


def _name_regime(row: Row) -> str:
    if row["latency_us"] <= _FLOOR * (row.get("empty_kernel_us") or 0):
        return LAUNCH
    if row.get("l2_bytes") is None or row.get("bytes_moved") is None:
        return ""
    return L2 if row["bytes_moved"] <= row["l2_bytes"] else MEMORY
