"""Read the state of a sweep from its folder: its rows, its plan, and the time left."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kvexp.host import file_lock
from kvexp.measurement import Row
from kvexp.results import row_file
from kvexp.results.labels import group_by_curve
from kvexp.results.merge import merge_repetitions
from kvexp.results.plan import PLAN, Curve, Plan, is_on_gpu, merge_plans, read_plan, resolve_curve
from kvexp.results.point_identity import select_newest
from kvexp.results.sweep_dir import LOCK, name_of

_ROWS_BEFORE_ESTIMATE = 3


@dataclass(frozen=True)
class State:
    """What is known of a sweep at one moment.

    Attributes:
        name: Its date and time.
        worker: The process that runs it, in words; None when it has ended.
        rows: The last row of each point and repetition, the earliest first.
        points: How many points are planned, over all repetitions; None where unknown.
        sizes: How many num_tokens each curve has, by its values of CURVE, resolved.
        seconds_left: Time left if the rest takes as long as the points so far; None while those are few, or
            when nothing is left.
    """

    name: str
    worker: str | None
    rows: tuple[Row, ...]
    points: int | None
    sizes: dict[Curve, int]
    seconds_left: float | None

    @property
    def curves(self) -> list[list[Row]]:
        """The rows grouped by curve, repetitions merged."""
        return group_by_curve(merge_repetitions(self.rows))

    def size(self, curve: list[Row]) -> int:
        """Return how many points the curve will have."""
        return max(len(curve), self.sizes.get(resolve_curve(curve[0], is_on_gpu(self.rows)), 0))


class SweepWatcher:
    """Read a sweep's folder again and again, each file only when it has grown."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._plans: dict[Path, Plan | None] = {}
        self._rows: dict[Path, tuple[int, list[dict[str, Any]]]] = {}

    def read(self, now: Callable[[], float]) -> State:
        """Return the state of the sweep; `now` returns the seconds since 1970.

        Raises:
            ConfigError: A file is not one of rows.
        """
        worker = file_lock.find_holder(self._home / LOCK)  # first: an ended sweep has written all of its rows
        files = sorted(self._home.glob(f"*/{row_file.ROWS}"))
        found = select_newest(row for file in files for row in self._read(file))
        found.sort(key=_get_start_s)
        plans = map(self._get_plan, (file.parents[1] for file in self._home.glob(f"*/{PLAN}")))
        curves = merge_plans(filter(None, plans), is_on_gpu(found))
        points = sum(sum(counts.values()) for counts in curves.values()) or None
        sizes = {curve: len(counts) for curve, counts in curves.items()}
        left = None if points is None or worker is None else self._estimate_s(found, points, now())
        return State(name_of(self._home.resolve()), worker, tuple(found), points, sizes, left)

    def _read(self, file: Path) -> list[dict[str, Any]]:
        size = file.stat().st_size
        if self._rows.get(file, (-1, []))[0] != size:
            self._rows[file] = size, row_file.read(file, lambda _: None)  # the last may be unfinished
        return self._rows[file][1]

    def _get_plan(self, job: Path) -> Plan | None:
        if not self._plans.get(job):
            self._plans[job] = read_plan(job)
        return self._plans[job]

    def _estimate_s(self, found: list[dict[str, Any]], points: int, now: float) -> float | None:
        # The lock file is written when the sweep is started or resumed.
        started = (self._home / LOCK).stat().st_mtime
        starts = [at for row in found if row["status"] != "skipped" and (at := _get_start_s(row)) >= started]
        left = points - len(found)
        if len(starts) < _ROWS_BEFORE_ESTIMATE or not left:
            return None
        return max(0.0, (max(starts) - min(starts)) / (len(starts) - 1) * (left + 1) - (now - max(starts)))


def _get_start_s(row: Row) -> float:
    """Return when the point was begun, in seconds since 1970; 0 where the row does not say."""
    started_at = row.get("started_at")
    return datetime.fromisoformat(started_at).timestamp() if started_at else 0.0
