"""Read the state of a running sweep from its folder: its rows, its plan, and the time left."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from kvexp import file_lock
from kvexp.measurement import Row
from kvexp.results import row_file
from kvexp.results.labels import CURVE, group_by_curve
from kvexp.results.merge import merge_repetitions
from kvexp.results.point_identity import select_newest
from kvexp.results.sweep_dir import LOCK, name_of

_CONFIG, _OVERRIDES = Path(".hydra", "config.yaml"), Path(".hydra", "overrides.yaml")
_ROWS_BEFORE_ESTIMATE = 3


@dataclass(frozen=True)
class State:
    """What is known of a sweep at one moment.

    Attributes:
        name: Its date and time.
        worker: The process that runs it, in words; None when it has ended.
        rows: The last row of each point and repetition, the earliest first.
        points: How many points are planned, over all repetitions; None where unknown.
        sizes: How many num_tokens each curve has, by its values of CURVE.
        seconds_left: Time left if the rest takes as long as the points so far; None while those are few, or
            when nothing is left.
    """

    name: str
    worker: str | None
    rows: tuple[Row, ...]
    points: int | None
    sizes: dict[tuple[Any, ...], int]
    seconds_left: float | None

    @property
    def curves(self) -> list[list[Row]]:
        """The rows grouped by curve, repetitions merged."""
        return group_by_curve(merge_repetitions(self.rows))

    def size(self, curve: list[Row]) -> int:
        """Return how many points the curve will have."""
        return max(len(curve), self.sizes.get(_key(curve[0]), 0))


class SweepWatcher:
    """Read a sweep's folder again and again, each file only when it has grown.

    Args:
        home: The folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._plans: dict[Path, tuple[tuple[str, ...], int, int]] = {}
        self._rows: dict[Path, tuple[int, list[dict[str, Any]]]] = {}

    def read(self, now: Callable[[], float]) -> State:
        """Return the state of the sweep now.

        Args:
            now: Returns the seconds since 1970.

        Raises:
            ConfigError: A file is not one of rows.
        """
        worker = file_lock.find_holder(self._home / LOCK)  # first: an ended sweep has written all of its rows
        jobs = {file.parent: self._read(file) for file in sorted(self._home.glob(f"*/{row_file.ROWS}"))}
        found = select_newest(row for own in jobs.values() for row in own)
        found.sort(key=_get_start_s)
        points = self._count_points()
        sizes = {_key(own[0]): size for job, own in jobs.items() if own and (size := self._get_plan(job)[1])}
        left = None if points is None or worker is None else self._estimate_s(found, points, now())
        return State(name_of(self._home.resolve()), worker, tuple(found), points, sizes, left)

    def _read(self, file: Path) -> list[dict[str, Any]]:
        size = file.stat().st_size
        if self._rows.get(file, (-1, []))[0] != size:
            self._rows[file] = size, row_file.read(file, lambda _: None)  # the last may be unfinished
        return self._rows[file][1]

    def _count_points(self) -> int | None:
        """Count the points of every job; a job that was composed again by a resumed sweep counts once."""
        jobs = (file.parents[1] for file in self._home.glob(f"*/{_CONFIG}"))
        plans = {plan[0]: plan[1] * plan[2] for job in jobs if (plan := self._get_plan(job))[1]}
        return sum(plans.values()) or None

    def _get_plan(self, job: Path) -> tuple[tuple[str, ...], int, int]:
        """Return the job's overrides, how many num_tokens it has, and how often it is repeated."""
        if job not in self._plans:
            self._plans[job] = _read_plan(job)
        return self._plans[job]

    def _estimate_s(self, found: list[dict[str, Any]], points: int, now: float) -> float | None:
        # The lock file is written when the sweep is started or resumed.
        started = (self._home / LOCK).stat().st_mtime
        starts = [at for row in found if row["status"] != "skipped" and (at := _get_start_s(row)) >= started]
        left = points - len(found)
        if len(starts) < _ROWS_BEFORE_ESTIMATE or not left:
            return None
        return max(0.0, (max(starts) - min(starts)) / (len(starts) - 1) * (left + 1) - (now - max(starts)))


def _read_plan(job: Path) -> tuple[tuple[str, ...], int, int]:
    try:
        config, overrides = (
            yaml.safe_load((job / name).read_text("utf-8")) for name in (_CONFIG, _OVERRIDES)
        )
        sizes = config["workload"]["num_tokens"]
        times = int(config.get("repeat", 1))
        return tuple(map(str, overrides)), len(sizes) if isinstance(sizes, list) else 1, times
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return (), 0, 0  # Hydra is still writing the file, or it is not one of Hydra's


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(column) for column in CURVE)


def _get_start_s(row: Row) -> float:
    """Return when the point was begun, in seconds since 1970; 0 where the row does not say."""
    started_at = row.get("started_at")
    return datetime.fromisoformat(started_at).timestamp() if started_at else 0.0
