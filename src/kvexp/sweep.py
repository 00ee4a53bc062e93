"""Around a whole sweep: its curves are measured in turn, their rows kept and tracked, the outcome told.

Imports neither torch nor MLflow: the measuring process imports the one while this process imports the other.
"""

import datetime
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kvexp import report, tracking
from kvexp.errors import ConfigError, ResultsError, Terminated, TrackingError, Unsupported, WorkerDied
from kvexp.experiment import Experiment
from kvexp.measurement import Measurement, Status
from kvexp.progress import Progress
from kvexp.rows import RowFile
from kvexp.tracking import Tracker, TrackingSettings
from kvexp.worker import Worker

Row = dict[str, Any]
Point = tuple[Row, Sequence[float]]
"""A row and its raw samples in microseconds."""


@dataclass(frozen=True)
class Job:
    """One curve of a sweep.

    Attributes:
        experiment: What to measure.
        folder: Where its rows go.
        overrides: The command-line overrides that make this job.
    """

    experiment: Experiment
    folder: Path
    overrides: tuple[str, ...]


def run(jobs: Sequence[Job], settings: TrackingSettings, command: str) -> int:
    """Every job is measured, its rows are on disk and tracked, and the table is printed.

    Args:
        jobs: The curves, in order; their folders share one parent, the sweep's folder.
        settings: Where to track.
        command: What was typed; kept with the sweep.

    Returns:
        0 when something is `ok` or `verified` and nothing is wrong, 1 when a row is `incorrect` or `failed`,
        3 when everything was skipped.

    Raises:
        ConfigError: Every job is wrong whatever the machine.
        Terminated: SIGTERM or SIGHUP came; what was measured is on disk, and no process is left.
    """
    folder = jobs[0].folder.parent
    rows: list[Row] = []
    status = "KILLED"
    with ExitStack() as stack:
        stack.enter_context(_terminable())
        workers = stack.enter_context(_Workers())
        workers.start(jobs[0].experiment.device)
        tracker = _Tracking(settings, folder, command)
        try:
            _measure(jobs, workers, tracker, rows)
            status = "FAILED" if exit_code(rows) == 1 else "FINISHED"
        except ResultsError as error:
            status = "FAILED"
            _say(f"kvexp: {error}")
            return 1
        finally:
            # The device is free before a store that is slow to answer is told of the end.
            workers.close()
            tracker.end(status)
            if rows:
                report.summary(rows, Console())
                _say(f"rows: {folder}")
                tracker.say_where()
    return exit_code(rows)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the sweep as Ctrl-C does: no process is left, and the store is told.

    Raises:
        Terminated: One of them came.
    """

    def terminate(number: int, _: object) -> None:
        raise Terminated(number)

    before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _measure(jobs: Sequence[Job], workers: "_Workers", tracker: "_Tracking", rows: list[Row]) -> None:
    """Every job's rows are in `rows`, on disk and tracked.

    A curve that only the measuring process finds wrong (a class that is not there, an option that it does not
    take) costs that curve alone: its rows are `failed`.

    Raises:
        ConfigError: Every curve is wrong whatever the machine.
        ResultsError: A row cannot be written.
    """
    wrong: list[tuple[Job, ConfigError]] = []
    points = sum(len(job.experiment.workload.num_tokens) for job in jobs)
    with Progress(points, Console(stderr=True)) as progress:
        for job in jobs:
            try:
                curve = _kept(job, _points(job.experiment, workers), progress, rows)
            except ConfigError as error:
                wrong.append((job, error))
            else:
                tracker.log_curve(job, curve)
        if len(wrong) == len(jobs):
            raise wrong[0][1]
        for job, why in wrong:
            left = _left(job.experiment, 0, "failed", str(why), workers.start(job.experiment.device))
            tracker.log_curve(job, _kept(job, left, progress, rows))


def exit_code(rows: Sequence[Mapping[str, Any]]) -> int:
    """0, 1 or 3; see `run`."""
    found = {row["status"] for row in rows}
    if found & {"incorrect", "failed"}:
        return 1
    return 0 if found & {"ok", "verified"} else 3


def _kept(job: Job, points: Iterator[Point], progress: Progress, rows: list[Row]) -> list[Row]:
    """The rows of one curve, each written, flushed and synced before the next is measured.

    Raises:
        ConfigError: The curve is wrong whatever the machine; it has no rows.
        ResultsError: A row cannot be written.
    """
    file = RowFile(job.folder)
    progress.curve(_label(job.experiment))
    curve: list[Row] = []
    for row, samples_us in points:
        try:
            file.append(row, samples_us)
        except OSError as error:
            raise ResultsError(
                f"cannot write {job.folder / 'rows.jsonl'} ({error.strerror}), so the sweep stops; "
                f"the {len(rows)} rows before it are whole"
            ) from error
        curve.append(row)
        rows.append(row)
        progress.advance(row)
    return curve


def _points(experiment: Experiment, workers: "_Workers") -> Iterator[Point]:
    """The points of one curve; those that a dead process or a missing device leaves are rows too."""
    done = 0
    worker = workers.start(experiment.device)
    try:
        worker.wait()
        for point in worker.run(experiment.resolved(worker.device)):
            yield point
            done += 1
    except Unsupported as refusal:
        yield from _left(experiment, done, "skipped", str(refusal), worker)
    except WorkerDied as death:
        yield from _left(experiment, done, "failed", str(death), worker)


def _left(experiment: Experiment, done: int, status: Status, reason: str, worker: Worker) -> Iterator[Point]:
    """The points after the first `done`, which the worker did not measure."""
    if worker.device:
        experiment = experiment.resolved(worker.device)
    now = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
    for case in list(experiment.cases())[done:]:
        yield Measurement(case, status, reason, started_at=now, environment=worker.environment).row(), ()


def _label(experiment: Experiment) -> str:
    parts = (experiment.impl, experiment.layout, experiment.dtype, experiment.kv_cache_dtype)
    return " ".join(part.name for part in parts if part.name != "auto")


class _Workers:
    """The one measuring process, replaced when it died or another device is asked for."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No process is left."""
        if self._worker:
            self._worker.close()

    def start(self, device: str) -> Worker:
        """A live process for the device; perhaps not ready yet."""
        worker = self._worker
        if worker is None or worker.requested != device or not (worker.alive or worker.refusal):
            if worker:
                worker.close()
            worker = self._worker = Worker(device)
        return worker


class _Tracking:
    """The sweep's tracker; the first trouble is said once, and then there is none."""

    def __init__(self, settings: TrackingSettings, folder: Path, command: str) -> None:
        self._tracker: Tracker | None = None
        try:
            self._tracker = tracking.connect(settings)
            if self._tracker:
                self._tracker.start_sweep("/".join(folder.parts[-2:]), command)
        except TrackingError as error:
            self._give_up(error)

    def log_curve(self, job: Job, rows: Sequence[Row]) -> None:
        """The curve is in the store."""
        if self._tracker:
            try:
                self._tracker.log_curve(job.folder, job.experiment, rows)
            except TrackingError as error:
                self._give_up(error)

    def end(self, status: str) -> None:
        """The sweep's run has ended with this status."""
        if self._tracker:
            try:
                self._tracker.end_sweep(status)
            except TrackingError as error:
                self._give_up(error)

    def say_where(self) -> None:
        """Says where the runs are."""
        if self._tracker:
            _say(f"tracked in {self._tracker.uri}")

    def _give_up(self, error: TrackingError) -> None:
        tracker, self._tracker = self._tracker, None
        _say(f"kvexp: {error}; the sweep goes on untracked, its rows are on disk")
        if tracker:
            # Its run would stay open for ever; a store that is away says so a second time in vain.
            with suppress(TrackingError):
                tracker.end_sweep("FAILED")


def _say(line: str) -> None:
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr)  # noqa: T201  # what a person reads beside the table
