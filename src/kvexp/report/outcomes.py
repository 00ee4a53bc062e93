"""Group the points of curves by outcome and reason."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvexp.bench.contract import describe_column
from kvexp.measurement import Row, is_right

ORDER = ("skipped", "verified", "incorrect", "failed")
"""What needs attention comes last: on the console that is just above the prompt."""

_MOST_NAMES = 8
_NOISY = 0.3
"""A width that is noise: of some 2100 points of an H200 (baselines/, docs/results/) two are wider."""


@dataclass(frozen=True)
class Outcome:
    """Points with one status and one reason.

    Attributes:
        status: Their status.
        reason: Why, in the row's words.
        curves: The names of their curves, each once.
        points: How many.
    """

    status: str
    reason: str
    curves: tuple[str, ...]
    points: int

    @property
    def whose(self) -> str:
        """The curves' names; of many the first ones, and how many more."""
        if len(self.curves) <= _MOST_NAMES:
            return ", ".join(self.curves)
        shown = _MOST_NAMES // 2
        return f"{', '.join(self.curves[:shown])} and {len(self.curves) - shown} more curves"

    @property
    def count(self) -> str:
        """`1 point`, `8 points`."""
        return f"{self.points} point{'' if self.points == 1 else 's'}"


def group_outcomes(grouped: Sequence[Sequence[Row]], names: Sequence[str]) -> list[Outcome]:
    """Group all points that are not `ok` by status and reason, in the order of ORDER."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, curve in zip(names, grouped, strict=True):
        for row in curve:
            if row["status"] != "ok":
                found[row["status"], row["reason"]].append(name)
    return [
        Outcome(status, reason, tuple(unique(points)), len(points))
        for (status, reason), points in sorted(found.items(), key=lambda item: ORDER.index(item[0][0]))
    ]


def group_breaches(grouped: Sequence[Sequence[Row]], names: Sequence[str]) -> list[Outcome]:
    """Group the right points whose implementation breaks or refuses clauses of the contract."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, curve in zip(names, grouped, strict=True):
        for row in curve:
            if is_right(row["status"]) and (but := describe_column(row.get("contract"))):
                found[but].append(name)
    return [Outcome("ok, but", but, tuple(unique(points)), len(points)) for but, points in found.items()]


def measure_noise(row: Row) -> float:
    """Return p20 to p80 as a fraction of the median where it is so wide that something else ran; else 0."""
    low, median, high = (row.get(f"latency_us{end}") for end in ("_p20", "", "_p80"))
    if low is None or median is None or high is None:
        return 0.0
    width: float = (high - low) / median
    return width if width > _NOISY else 0.0


def unique(words: Iterable[str]) -> list[str]:
    """Return each word once, in the order in which they come."""
    return list(dict.fromkeys(words))
