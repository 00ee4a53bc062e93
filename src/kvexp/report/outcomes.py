"""Group points by outcome and reason: each reason once, with whose it is."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvexp.bench.contract import describe_column
from kvexp.results.rows import RIGHT

Row = Mapping[str, Any]

ORDER = ("skipped", "verified", "incorrect", "failed")
"""What needs attention stands last: on the console that is above the prompt."""

_MOST_NAMES = 8


@dataclass(frozen=True)
class Outcome:
    """Points that ended alike.

    Attributes:
        status: How.
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
        """The names of a few curves; of many the first ones, and how many more."""
        if len(self.curves) <= _MOST_NAMES:
            return ", ".join(self.curves)
        shown = _MOST_NAMES // 2
        return f"{', '.join(self.curves[:shown])} and {len(self.curves) - shown} more curves"

    @property
    def count(self) -> str:
        """`1 point`, `8 points`."""
        return f"{self.points} point{'' if self.points == 1 else 's'}"


def outcomes(grouped: Sequence[Sequence[Row]], names: Sequence[str]) -> list[Outcome]:
    """Every reason of the curves once, in the order of ORDER."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, curve in zip(names, grouped, strict=True):
        for row in curve:
            if row["status"] != "ok":
                found[row["status"], row["reason"]].append(name)
    return [
        Outcome(status, reason, tuple(unique(points)), len(points))
        for (status, reason), points in sorted(found.items(), key=lambda item: ORDER.index(item[0][0]))
    ]


def breaches(grouped: Sequence[Sequence[Row]], names: Sequence[str]) -> list[Outcome]:
    """Return what of the contract is not kept, or refused, where points are right."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, curve in zip(names, grouped, strict=True):
        for row in curve:
            if row["status"] in RIGHT and (but := describe_column(row.get("contract"))):
                found[but].append(name)
    return [Outcome("ok, but", but, tuple(unique(points)), len(points)) for but, points in found.items()]


def unique(words: Iterable[str]) -> list[str]:
    """Each word once, in the order in which they come."""
    return list(dict.fromkeys(words))
