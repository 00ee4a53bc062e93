"""Fit what a copy in pieces costs: `us = start + us_per_piece * pieces + bytes / bandwidth`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvexp.measurement import Row
from kvexp.report.curves import Line, describe
from kvexp.report.format import DASH, number, small_percent
from kvexp.report.speedups import get_latency_us

_WAY = ("op", "impl", "impl_options", "dtype", "mode", "timer", "to")
"""The columns that points of one model share; they may differ in layout, sizes and ranks."""

_COEFFICIENTS = 3
_SIZES = 2  # of pieces, from which on their number can be told from their bytes

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """The model of one way of copying.

    Attributes:
        way: Its op, its implementation, and what distinguishes it from the others, in words.
        points: How many points it was fitted to.
        missing: What a fit would take, a sentence; empty where there is one.
        start_us: What a call takes without a piece; 0 where every point moves as many bytes.
        us_per_piece: What each further piece takes.
        gb_per_s: Bytes written a second, in 10^9; None where more bytes were not seen to take longer.
        errors: The absolute relative errors of the points, ascending.
    """

    way: str
    points: int
    missing: str = ""
    start_us: float = 0.0
    us_per_piece: float = 0.0
    gb_per_s: float | None = None
    errors: tuple[float, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """The model in a table: start, µs a piece, GB/s, median and largest error."""
        bandwidth = DASH if self.gb_per_s is None else number(self.gb_per_s)
        errors = (float(np.median(self.errors)), self.errors[-1])
        return (number(self.start_us), number(self.us_per_piece), bandwidth, *map(small_percent, errors))


def fit_ways(lines: Sequence[Line]) -> list[Fit]:
    """Fit each way of copying of which lines have pieces."""
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        if _list_points(line):
            found.setdefault(tuple(line.key.get(column) for column in _WAY), []).append(line)
    firsts = [own[0] for own in found.values()]
    varied = [column for column in _WAY if len({line.key.get(column) for line in firsts}) > 1]
    return [_fit(describe(own[0], dict.fromkeys(["op", "impl", *varied])), own) for own in found.values()]


def solve(terms: Matrix, times: Matrix) -> Matrix:
    """Solve `terms @ x = times` for `x >= 0` with the least relative errors, squared and summed.

    Where that sum is least, some of `x` are 0 and the others solve the equations alone, so each choice of
    these others is tried.
    """
    scales = np.where(terms.any(axis=0), terms.max(axis=0), 1.0)
    relative = terms / scales / times[:, None]
    ones = np.ones(len(times))
    best: Matrix = np.zeros(terms.shape[1])
    least = np.inf
    for count in range(1, terms.shape[1] + 1):
        for chosen in combinations(range(terms.shape[1]), count):
            own = relative[:, chosen]
            solved = np.linalg.lstsq(own, ones, rcond=None)[0]
            rest = float(np.sum((own @ solved - ones) ** 2))
            if solved.min() >= 0 and rest < least:
                least, best = rest, np.zeros(terms.shape[1])
                best[list(chosen)] = solved
    found: Matrix = best / scales
    return found


def _fit(way: str, lines: Sequence[Line]) -> Fit:
    rows = [row for line in lines for row in _list_points(line)]
    if missing := _find_missing(rows):
        return Fit(way, len(rows), missing)
    pieces = np.array([row["pieces"] for row in rows], float)
    sizes = pieces * np.array([row["piece_bytes"] for row in rows], float)
    times = np.array([get_latency_us(row) for row in rows], float)
    # Where all move as many bytes, a start cannot be told from the bytes' time.
    starts = np.full(len(rows), float(sizes.min() < sizes.max()))
    terms = np.stack([starts, pieces, sizes], axis=1)
    start, per_piece, per_byte = (solved := solve(terms, times))
    errors = np.sort(np.abs(terms @ solved - times) / times)
    return Fit(
        way,
        len(rows),
        start_us=float(start),
        us_per_piece=float(per_piece),
        gb_per_s=float(1e-3 / per_byte) if per_byte else None,
        errors=tuple(map(float, errors)),
    )


def _list_points(line: Line) -> list[Row]:
    """List the line's points that were copied in pieces."""
    return [row for row in line.points if row.get("pieces") and row.get("piece_bytes")]


def _find_missing(rows: Sequence[Row]) -> str:
    distinct = {(row["pieces"], row["piece_bytes"]) for row in rows}
    sizes = {size for _, size in distinct}
    if len(distinct) <= _COEFFICIENTS:
        return (
            f"a fit takes {_COEFFICIENTS + 1} transfers that differ in number or size of pieces, not "
            f"{len(distinct)}; measure more layouts or workload.num_tokens"
        )
    if len(sizes) < _SIZES:
        return f"all pieces have {sizes.pop():,} bytes; measure another layout, which has others"
    return ""
