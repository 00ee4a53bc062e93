"""Run a sweep: measure its curves one after another, write and track their rows, print the summary.

Imports neither torch nor MLflow: two child processes do, while this one composes the curves.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kvexp import tracking
from kvexp.errors import ConfigError, KvexpError, ResultsError
from kvexp.experiment import Experiment
from kvexp.host.plain_file import find_gone
from kvexp.host.terminal import say
from kvexp.measurement import Row, is_right, is_wrong
from kvexp.results import sweep_dir
from kvexp.results.point_identity import REPETITION, Identity, identify_in_workload
from kvexp.results.row_file import TRACEBACKS, RowFile
from kvexp.sweep import curve_run
from kvexp.sweep.curve_run import CurveRun, WorkerSupervisor
from kvexp.sweep.prestart import Prestart
from kvexp.sweep.progress import Progress
from kvexp.sweep.settings import SweepSettings
from kvexp.sweep.signals import raise_on_signals
from kvexp.sweep.subprocess_worker import Point
from kvexp.sweep.summary import print_summary
from kvexp.tracking import artifacts
from kvexp.tracking.best_effort import BestEffort


@dataclass(frozen=True)
class Job:
    """One curve of a sweep.

    Attributes:
        experiment: What to measure.
        folder: Where its rows go.
        words: What is typed after `python -m kvexp` to measure this curve alone.
        repetition: The round in which it is measured, from 1 on; each round has a process of its own. None
            where there is one round: its rows do not say which.
    """

    experiment: Experiment
    folder: Path
    words: tuple[str, ...]
    repetition: int | None = None

    @property
    def label(self) -> str:
        """Its main choices, as the user sees them."""
        e = self.experiment
        parts = (e.impl, e.layout, e.dtype, e.kv_cache_dtype)
        return " ".join(part.name for part in parts if part.name != "auto")


@dataclass
class Outcome:
    """The rows of a sweep so far.

    Attributes:
        done: The correct row of each point, by repetition; with resume=true those of earlier runs too.
        rows: The rows of this sweep's points, whether measured now or before.
        points: The points that have a correct row in `rows`, each with its repetition.
        curves: Each job with a new row, and its new rows.
        untried: How many points `fail_fast` left.
    """

    done: dict[int, dict[Identity, Row]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    points: set[tuple[int, Identity]] = field(default_factory=set)
    curves: list[tuple[Job, list[Row]]] = field(default_factory=list)
    untried: int = 0

    def count(self) -> int:
        """Count the points that have a row: right ones of any start of the sweep, and others of this one."""
        others = sum(not is_right(row["status"]) for row in self.rows)
        return sum(map(len, self.done.values())) + others


def run(
    jobs: Sequence[Job],
    settings: SweepSettings,
    command: str,
    prestart: Prestart | None = None,
    resume_command: str = "",
) -> int:
    """Measure every job, write its rows to disk, track them, and print the table.

    Args:
        jobs: The curves, in order, round by round; their folders share one parent, the sweep's folder.
        settings: How.
        command: What was typed; stored with the sweep.
        prestart: The processes that were started before.
        resume_command: What continues the sweep where it is interrupted.

    Returns:
        0 when something is `ok` or `verified` and nothing is wrong, 1 when a row is `incorrect` or `failed`,
        3 when everything was skipped.

    Raises:
        ConfigError: Every job is wrong whatever the machine, or what is to be resumed cannot be.
        Terminated: SIGTERM or SIGHUP came; what was measured is on disk, and no process is left.
    """
    home = jobs[0].folder.parent
    with ExitStack() as stack:
        stack.enter_context(raise_on_signals())
        outcome = _open_folder(home, settings, stack)
        total = sum(len(job.experiment.workload.num_tokens) for job in jobs)
        stack.enter_context(_report_interruption(outcome, total, resume_command))
        measures, tracks = settings.isolation == "process", settings.tracking.kind != "none"
        prestart = prestart or stack.enter_context(Prestart(measures, tracks))
        prestart.keep(measures, tracks)
        experiments = [job.experiment for job in jobs]
        supervisor = WorkerSupervisor(settings, say, prestart.take_child, experiments)
        stack.callback(supervisor.close)
        supervisor.start(experiments[0].device)
        tracker = _start_tracking(home, settings, command, prestart if tracks else None)
        status = "KILLED"
        try:
            _measure(jobs, settings, supervisor, tracker, outcome)
            status = "FAILED" if exit_code(outcome.rows) == 1 else "FINISHED"
        except ResultsError as error:
            status = "FAILED"
            say(f"kvexp: {error}")
            return 1
        finally:
            # The GPU's memory is freed while a slow store is told of the end.
            supervisor.kill()
            _finish(outcome, home, settings.repeat, tracker, status)
    return exit_code(outcome.rows)


@contextmanager
def _report_interruption(outcome: Outcome, total: int, resume_command: str) -> Iterator[None]:
    """Say how far the sweep came where a signal ends the block, also a second one while it ends."""
    try:
        yield
    except KeyboardInterrupt:
        note = f"kvexp: interrupted after {min(outcome.count(), total)} of {total} points"
        say(note + (f"; this goes on: {resume_command}" if resume_command else ""))
        raise


def exit_code(rows: Sequence[Row]) -> int:
    """Return 0, 1 or 3; see `run`."""
    if any(is_wrong(row["status"]) for row in rows):
        return 1
    return 0 if any(is_right(row["status"]) for row in rows) else 3


def _open_folder(home: Path, settings: SweepSettings, stack: ExitStack) -> Outcome:
    """Lock the sweep's folder until the stack closes, and read which points are done if it resumes.

    Raises:
        ConfigError: Another process works there, or its rows cannot be read.
    """
    home.mkdir(parents=True, exist_ok=True)
    stack.enter_context(sweep_dir.hold_for_sweep(home))
    try:
        return Outcome(sweep_dir.read_right_rows(home) if settings.resumes else {})
    except KvexpError as error:
        raise ConfigError(f"{home} cannot be resumed: {error}") from error


def _start_tracking(
    home: Path, settings: SweepSettings, command: str, prestart: Prestart | None
) -> BestEffort:
    """Have the store made ready while curves are measured; None tracks nothing."""
    store = prestart.get_tracker() if prestart else None
    if store:
        store.connect(settings.tracking)
        artifacts.prepare()
    again = tracking.sync_command(settings.tracking, home)
    if store is None:
        return BestEffort(None, home, command, settings.resumes, say, again)
    return BestEffort(store.wait, home, command, settings.resumes, say, again, store.ready)


def _measure(
    jobs: Sequence[Job],
    settings: SweepSettings,
    supervisor: WorkerSupervisor,
    tracker: BestEffort,
    outcome: Outcome,
) -> None:
    """Measure and track every job.

    A curve that only the measuring process finds wrong (a class that is not there, an option that it does not
    take) costs that curve alone: its rows are `failed`, and come last.

    Raises:
        ConfigError: Every curve is wrong whatever the machine.
        ResultsError: A row cannot be written.
    """
    wrong: list[tuple[Job, CurveRun, ConfigError]] = []
    total = sum(len(job.experiment.workload.num_tokens) for job in jobs)
    repetition = jobs[0].repetition
    with Progress(total) as progress:
        for job in jobs:
            if job.repetition != repetition:  # each round has a process of its own
                supervisor.close()
                repetition = job.repetition
            curve = curve_run.begin(job.experiment, supervisor, outcome.done.get(repetition or 1, {}))
            if curve.is_host_sensitive:
                tracker.settle()
            progress.start_curve(job.label + (f" ({repetition} of {settings.repeat})" if repetition else ""))
            try:
                points = _measure_curve(curve, tracker, settings.fail_fast)
                rows = _record(points, job, curve, progress, outcome)
            except ConfigError as error:
                wrong.append((job, curve, error))
                rows = []
            else:
                tracker.log_curve(job.folder, job.experiment.impl.target, rows)
            if settings.fail_fast and (wrong or any(is_wrong(row["status"]) for row in rows)):
                break
        if wrong and not outcome.rows:
            raise wrong[0][2]
        for job, curve, why in wrong:
            progress.start_curve(job.label)
            rows = _record(curve.give_up(0, "failed", str(why)), job, curve, progress, outcome)
            tracker.log_curve(job.folder, job.experiment.impl.target, rows)
        outcome.untried = total - progress.done


def _measure_curve(curve: CurveRun, tracker: BestEffort, fail_fast: bool) -> Iterator[Point]:
    """Yield the curve's points; send to the store after each, if host load cannot affect the next."""
    for row, samples_us in curve.measure():
        yield row, samples_us
        if fail_fast and is_wrong(row["status"]):
            return
        if not curve.is_host_sensitive:
            tracker.poll()


def _record(
    points: Iterator[Point], job: Job, curve: CurveRun, progress: Progress, outcome: Outcome
) -> list[Row]:
    """Write the points' rows, add them and the curve's earlier rows to the outcome, and return the new ones.

    Raises:
        ConfigError: The curve is wrong whatever the machine; it has no rows.
        ResultsError: A row cannot be written.
    """
    number = job.repetition or 1
    done = outcome.done.setdefault(number, {})
    earlier = [done[identity] for identity in curve.already_done if (number, identity) not in outcome.points]
    if len(earlier) < len(curve.already_done):
        _report_twin(job, done[curve.already_done[0]])
    new: list[Row] = []
    for row in _write(points, job, curve, outcome):
        if not new:
            outcome.curves.append((job, new))
        new.append(row)
        outcome.rows.append(row)
        if is_right(row["status"]):
            done[identify_in_workload(row)] = row
            outcome.points.add((number, identify_in_workload(row)))
        progress.advance(row)
    progress.add_already_done(len(curve.already_done))
    outcome.rows += earlier
    outcome.points |= {(number, identity) for identity in curve.already_done}
    return new


def _report_twin(job: Job, row: Row) -> None:
    """Say that another curve of this sweep has the job's points, and what `auto` was resolved to."""
    as_what = " ".join(f"{column}={row[column]}" for column in ("device", "mode", "timer"))
    say(f"kvexp: {job.label} is there already, as {as_what}; it is not measured twice")


def _write(points: Iterator[Point], job: Job, curve: CurveRun, outcome: Outcome) -> Iterator[Row]:
    """Yield each row once it is on disk, flushed and synced; only then is the next point measured.

    Raises:
        ResultsError: A row cannot be written.
    """
    file: RowFile | None = None
    for row, samples_us in points:
        if job.repetition:
            row[REPETITION] = job.repetition
        try:
            file = file or RowFile(job.folder)
            if curve.worker.traceback:
                file.append_traceback(row["num_tokens"], curve.worker.traceback)
            file.append(row, samples_us)
        except OSError as error:
            if gone := find_gone(job.folder):
                raise ResultsError(f"{gone} is gone, so the sweep stops") from error
            raise ResultsError(
                f"cannot write {job.folder / 'rows.jsonl'} ({error.strerror}), so the sweep stops; "
                f"the {sum(len(rows) for _, rows in outcome.curves)} rows before it are whole"
            ) from error
        yield row


def _finish(outcome: Outcome, home: Path, repeat: int, tracker: BestEffort, status: str) -> None:
    """Print the summary, then end the store's run and send the report, whatever interrupts that.

    The summary does not wait for the store. The report is drawn while the last curve arrives there.
    """
    with ExitStack() as last:  # its callbacks run from the last to the first
        if outcome.rows:
            last.callback(tracker.send_report)
        last.callback(tracker.end, status)
        if outcome.rows:
            if status != "KILLED":  # that one's report is left to a sync
                last.callback(tracker.draw_report)
            last.callback(tracker.start)
            tracker.poll()
            curves = [(job.label, job.words, rows) for job, rows in outcome.curves]
            files = [job.folder / TRACEBACKS for job, _ in outcome.curves]
            written = [file for file in files if file.exists()]
            print_summary(outcome.rows, curves, home, repeat, outcome.untried, written)
