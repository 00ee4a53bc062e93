"""Read the state of a sweep from its folder: its rows, its plan, and the time left."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from kvexp.host import file_lock
from kvexp.measurement import Row
from kvexp.results import row_file
from kvexp.results.labels import CURVE, group_by_curve
from kvexp.results.merge import merge_repetitions
from kvexp.results.overrides import get_key
from kvexp.results.point_identity import select_newest
from kvexp.results.sweep_dir import LOCK, name_of

_HYDRA, _CONFIG = ".hydra", "config.yaml"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
_HOW = ("tracking", "resume", "repeat", "timeout_s", "fail_fast", "isolation", "experiment")
"""What does not say which curve a job is."""
_ROWS_BEFORE_ESTIMATE = 3


@dataclass(frozen=True)
class Plan:
    """What a job was composed to measure, by what Hydra wrote.

    Attributes:
        curve: The options that were chosen and the values that were typed; equal for two jobs of one curve.
        num_tokens: Its points.
        repeat: How often each is measured.
    """

    curve: frozenset[str]
    num_tokens: tuple[Any, ...]
    repeat: int


def count_planned(paths: Sequence[Path]) -> int:
    """Count the points that the jobs below these folders, or of these files, were composed to measure."""
    patterns = [(path, "**/") if path.is_dir() else (path.parent, "") for path in paths]
    files = (file for folder, below in patterns for file in folder.glob(f"{below}{_HYDRA}/{_CONFIG}"))
    of_sweeps: dict[Path, list[Plan]] = {}
    for job in {file.resolve().parents[1] for file in files}:
        if plan := _read_plan(job):
            of_sweeps.setdefault(job.parent, []).append(plan)
    return sum(sum(map(len, _merge_plans(plans).values())) for plans in of_sweeps.values())


def _merge_plans(plans: Iterable[Plan]) -> dict[tuple[frozenset[str], int], set[Any]]:
    """Return the num_tokens of each curve; one that was composed again by a resumed sweep is one curve."""
    found: dict[tuple[frozenset[str], int], set[Any]] = {}
    for plan in plans:
        found.setdefault((plan.curve, plan.repeat), set()).update(plan.num_tokens)
    return found


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
        self._plans: dict[Path, Plan | None] = {}
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
        planned = [(own[0], plan) for job, own in jobs.items() if own and (plan := self._get_plan(job))]
        sizes = {_key(row): len(plan.num_tokens) for row, plan in planned}
        left = None if points is None or worker is None else self._estimate_s(found, points, now())
        return State(name_of(self._home.resolve()), worker, tuple(found), points, sizes, left)

    def _read(self, file: Path) -> list[dict[str, Any]]:
        size = file.stat().st_size
        if self._rows.get(file, (-1, []))[0] != size:
            self._rows[file] = size, row_file.read(file, lambda _: None)  # the last may be unfinished
        return self._rows[file][1]

    def _count_points(self) -> int | None:
        jobs = (file.parents[1] for file in self._home.glob(f"*/{_HYDRA}/{_CONFIG}"))
        curves = _merge_plans(filter(None, map(self._get_plan, jobs)))
        return sum(repeat * len(sizes) for (_, repeat), sizes in curves.items()) or None

    def _get_plan(self, job: Path) -> Plan | None:
        if not self._plans.get(job):
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


def _read_plan(job: Path) -> Plan | None:
    """Read the job's plan; None where Hydra is still writing it, or the files are not Hydra's."""
    try:
        config, typed = (_read_yaml(job / _HYDRA / name) for name in (_CONFIG, "overrides.yaml"))
        sizes = config["workload"]["num_tokens"]
        rest = [text for text in map(str, typed) if get_key(text) != "workload.num_tokens"]
        try:
            choices = _read_yaml(job / _HYDRA / "hydra.yaml")["hydra"]["runtime"]["choices"]
        except OSError:  # not kept everywhere
            choices = {}
        chosen = {f"{group}={name}" for group, name in choices.items() if isinstance(name, str)}
        # The choices say what the overrides of the same groups say, and what a preset chose.
        curve = chosen | {text for text in rest if get_key(text) not in choices}
        how = {text for text in curve if text.startswith("hydra") or text.split("=")[0].split(".")[0] in _HOW}
        numbers = tuple(sizes) if isinstance(sizes, list) else (sizes,)
        return Plan(frozenset(curve - how), tuple(map(str, numbers)), int(config.get("repeat", 1)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None


def _read_yaml(file: Path) -> Any:
    return yaml.load(file.read_text("utf-8"), Loader=_LOADER)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(column) for column in CURVE)


def _get_start_s(row: Row) -> float:
    """Return when the point was begun, in seconds since 1970; 0 where the row does not say."""
    started_at = row.get("started_at")
    return datetime.fromisoformat(started_at).timestamp() if started_at else 0.0
