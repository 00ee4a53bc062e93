"""A sweep at work, as far as the disk knows it: its rows, what is planned, and how long it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from kvexp import file_lock
from kvexp.errors import ConfigError, KvexpError
from kvexp.results import load, rows
from kvexp.results.rows import ROWS, Row
from kvexp.results.sweep_dir import LOCK

_CONFIG, _OVERRIDES = Path(".hydra", "config.yaml"), Path(".hydra", "overrides.yaml")
_ROWS_BEFORE_ESTIMATE = 3


@dataclass(frozen=True)
class State:
    """What is known of a sweep at one moment.

    Attributes:
        name: Its date and time.
        worker: Who is at work in it, in words; None when it has ended.
        rows: The last row of each point and repetition, the earliest first.
        points: How many points are planned, every repetition counted; None where that is not known.
        sizes: How many num_tokens the curve of a row has, by the columns that tell curves apart.
        seconds_left: What is left if the rest takes as long as what was tried so far; None while that is
            little, or nothing is left.
    """

    name: str
    worker: str | None
    rows: tuple[Row, ...]
    points: int | None
    sizes: dict[tuple[Any, ...], int]
    seconds_left: float | None

    @property
    def curves(self) -> list[list[Row]]:
        """The rows apart by curve, of several repetitions the one in the middle."""
        return rows.curves(load.across(self.rows))

    def size(self, curve: list[Row]) -> int:
        """How many points the curve will have."""
        return max(len(curve), self.sizes.get(_key(curve[0]), 0))


class Watched:
    """A sweep's folder, of whose files each is read again only when it has grown.

    Args:
        home: The folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._plans: dict[Path, tuple[tuple[str, ...], int, int]] = {}
        self._rows: dict[Path, tuple[int, list[dict[str, Any]]]] = {}

    def look(self, now: Callable[[], float]) -> State:
        """What is known now.

        Args:
            now: Seconds since 1970.

        Raises:
            ConfigError: A file is not one of rows.
        """
        worker = file_lock.find_holder(
            self._home / LOCK
        )  # first: what an ended sweep has written is all there
        jobs = {file.parent: self._read(file) for file in sorted(self._home.glob(f"*/{ROWS}"))}
        found = rows.newest(row for own in jobs.values() for row in own)
        found.sort(key=_begun)
        points = self._points()
        sizes = {_key(own[0]): self._plan(job)[1] for job, own in jobs.items() if own and self._plan(job)[1]}
        left = None if points is None or worker is None else self._seconds_left(found, points, now())
        name = "/".join(self._home.resolve().parts[-2:])
        return State(name, worker, tuple(found), points, sizes, left)

    def _read(self, file: Path) -> list[dict[str, Any]]:
        size = file.stat().st_size
        if self._rows.get(file, (-1, []))[0] != size:
            try:
                self._rows[file] = size, rows.read(file, lambda _: None)  # its last line may be in the making
            except KvexpError as error:
                raise ConfigError(str(error)) from error
        return self._rows[file][1]

    def _points(self) -> int | None:
        """Every job's points, a job once that was composed again when the sweep was resumed."""
        jobs = (file.parents[1] for file in self._home.glob(f"*/{_CONFIG}"))
        plans = {plan[0]: plan[1] * plan[2] for job in jobs if (plan := self._plan(job))[1]}
        return sum(plans.values()) or None

    def _plan(self, job: Path) -> tuple[tuple[str, ...], int, int]:
        """What the job was composed from, how many num_tokens it has, and how often it is repeated."""
        if job not in self._plans:
            self._plans[job] = _plan(job)
        return self._plans[job]

    def _seconds_left(self, found: list[dict[str, Any]], points: int, now: float) -> float | None:
        # The lock's file is written when the sweep is started, or resumed.
        started = (self._home / LOCK).stat().st_mtime
        tried = [_begun(row) for row in found if row["status"] != "skipped" and _begun(row) >= started]
        left = points - len(found)
        if len(tried) < _ROWS_BEFORE_ESTIMATE or not left:
            return None
        return max(0.0, (max(tried) - min(tried)) / (len(tried) - 1) * (left + 1) - (now - max(tried)))


def _plan(job: Path) -> tuple[tuple[str, ...], int, int]:
    try:
        config, overrides = (
            yaml.safe_load((job / name).read_text("utf-8")) for name in (_CONFIG, _OVERRIDES)
        )
        sizes = config["workload"]["num_tokens"]
        times = int(config.get("repeat", 1))
        return tuple(map(str, overrides)), len(sizes) if isinstance(sizes, list) else 1, times
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return (), 0, 0  # Hydra is still writing it, or it is none


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(column) for column in rows.CURVE)


def _begun(row: Row) -> float:
    """When the point was begun, in seconds since 1970; 0 where the row does not say."""
    try:
        return datetime.fromisoformat(row.get("started_at") or "").timestamp()
    except ValueError:
        return 0.0
