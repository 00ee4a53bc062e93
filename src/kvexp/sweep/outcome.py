"""The rows of a sweep, each written to disk before the next point of its curve is measured."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvexp.errors import ResultsError
from kvexp.host.plain_file import find_gone
from kvexp.host.terminal import say
from kvexp.measurement import Row, is_right
from kvexp.results.labels import NAME
from kvexp.results.point_identity import REPETITION, Identity, identify_in_workload
from kvexp.results.row_file import RowFile
from kvexp.sweep.curve_run import CurveRun
from kvexp.sweep.job import Job
from kvexp.sweep.subprocess_worker import Point


@dataclass
class Outcome:
    """The rows of a sweep so far.

    Attributes:
        identify: Tells points apart.
        done: The correct row of each point, by repetition; with resume=true those of earlier runs too.
        rows: The rows of this sweep's points, whether measured now or before.
        points: The points that have a correct row in `rows`, each with its repetition.
        curves: Each job with a new row, and its new rows.
        wanted: How many points are asked for, as far as is known.
        untried: How many of them were left, by `fail_fast` or since no place was left.
    """

    identify: Callable[[Row], Identity] = identify_in_workload
    done: dict[int, dict[Identity, Row]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    points: set[tuple[int, Identity]] = field(default_factory=set)
    curves: list[tuple[Job, list[Row]]] = field(default_factory=list)
    wanted: int = 0
    untried: int = 0
    _running: dict[tuple[int, Identity], Job] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def claim(self, job: Job, point: dict[str, Any]) -> bool:
        """Return whether the job is to measure the point: it is neither right already nor being measured."""
        key = (job.repetition or 1, self.identify(point))
        with self._lock:
            if key[1] in self.done.get(key[0], {}) or key in self._running:
                return False
            self._running[key] = job
            return True

    def release(self, job: Job) -> None:
        """Say that the job is over: its points are right, or others may measure them."""
        with self._lock:
            self._running = {key: other for key, other in self._running.items() if other is not job}

    def count(self) -> int:
        """Count the points that have a row: right ones of any start of the sweep, and others of this one."""
        others = sum(not is_right(row["status"]) for row in self.rows)
        return sum(map(len, self.done.values())) + others

    def find_gpus(self) -> dict[int, str]:
        """Find the UUID of the GPU that has right rows of each round: of several the last one's."""
        rows = [(number, row) for number, rows in self.done.items() for row in rows.values()]
        return {number: row["device_uuid"] for number, row in rows if row.get("device_uuid")}


class CurveRecord:
    """The rows of one curve.

    Attributes:
        job: The curve's.
        curve: The curve.
        new: The rows that were measured now.
    """

    def __init__(self, job: Job, curve: CurveRun, outcome: Outcome) -> None:
        self.job = job
        self.curve = curve
        self.new: list[Row] = []
        self._outcome = outcome
        self._number = job.repetition or 1
        self._done = outcome.done.setdefault(self._number, {})
        self._file: RowFile | None = None
        self._already = [outcome.identify(point) for point in curve.already_done]
        self._here = [one for one in self._already if (self._number, one) in outcome.points]
        self._earlier = [
            self._done[one] for one in self._already if one in self._done and one not in self._here
        ]

    def report_twin(self) -> None:
        """Say if another curve of this sweep has the points, and what `auto` was resolved to there."""
        for identity in self._here[:1]:
            row = self._done[identity]
            as_what = " ".join(f"{column}={row[column]}" for column in ("device", "mode", "timer"))
            say(f"kvexp: {self.job.name} is there already, as {as_what}; it is not measured twice")

    def add(self, point: Point) -> Row:
        """Write the point's row to disk, flushed and synced, and add it to the sweep's; return it.

        Raises:
            ResultsError: It cannot be written.
        """
        row, samples_us = point
        row[NAME] = self.job.name
        if self.job.repetition:
            row[REPETITION] = self.job.repetition
        try:
            self._file = self._file or RowFile(self.job.folder)
            if self.curve.worker.traceback:
                self._file.append_traceback(row["num_tokens"], self.curve.worker.traceback)
            self._file.append(row, samples_us)
        except OSError as error:
            if gone := find_gone(self.job.folder):
                raise ResultsError(f"{gone} is gone, so the sweep stops") from error
            raise ResultsError(
                f"cannot write {self.job.folder / 'rows.jsonl'} ({error.strerror}), so the sweep stops; "
                f"the {sum(len(rows) for _, rows in self._outcome.curves)} rows before it are whole"
            ) from error
        if not self.new:
            self._outcome.curves.append((self.job, self.new))
        self.new.append(row)
        self._outcome.rows.append(row)
        if is_right(row["status"]):
            identity = self._outcome.identify(row)
            self._done[identity] = row
            self._outcome.points.add((self._number, identity))
        return row

    def list_rows(self) -> list[Row]:
        """List the rows of the curve's points, measured now, before, or by a twin of it."""
        return [*self.new, *(self._done[one] for one in self._already if one in self._done)]

    def close(self) -> None:
        """Add the curve's rows of an earlier start of the sweep."""
        self._outcome.rows += self._earlier
        self._outcome.points |= {(self._number, self._outcome.identify(row)) for row in self._earlier}
        self._outcome.release(self.job)
