"""Around a whole sweep: its curves are measured in turn, their rows kept and tracked, the outcome told.

Imports neither torch nor MLflow: two other processes do, while this one composes what they are to do.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from kvexp import tracking
from kvexp.errors import ConfigError, KvexpError, ResultsError, Terminated
from kvexp.experiment import Experiment
from kvexp.results import failures, sweep_dir
from kvexp.results.rows import REPETITION, RIGHT, Identity, RowFile, point
from kvexp.sweep import curve_run
from kvexp.sweep.curve_run import Begun, Workers
from kvexp.sweep.prestart import Ahead
from kvexp.sweep.progress import Progress
from kvexp.sweep.settings import SweepSettings
from kvexp.sweep.subprocess_worker import Point
from kvexp.sweep.summary import say, tell
from kvexp.tracking import artifacts
from kvexp.tracking.best_effort import BestEffort

Row = Mapping[str, Any]


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
        """Its main choices."""
        e = self.experiment
        parts = (e.impl, e.layout, e.dtype, e.kv_cache_dtype)
        return " ".join(part.name for part in parts if part.name != "auto")


@dataclass
class Outcome:
    """What is known of a sweep so far.

    Attributes:
        done: The points that are right, by repetition, those from before it began included.
        rows: The rows of its points, those that were there before included.
        points: Those that have a row among them, each with its repetition.
        curves: Each job that was begun, with the rows that it got.
        untried: Points that `fail_fast` left.
    """

    done: dict[int, dict[Identity, Row]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    points: set[tuple[int, Identity]] = field(default_factory=set)
    curves: list[tuple[Job, list[Row]]] = field(default_factory=list)
    untried: int = 0


def run(jobs: Sequence[Job], settings: SweepSettings, command: str, ahead: Ahead | None = None) -> int:
    """Every job is measured, its rows are on disk and tracked, and the table is printed.

    Args:
        jobs: The curves, in order, round by round; their folders share one parent, the sweep's folder.
        settings: How.
        command: What was typed; kept with the sweep.
        ahead: What was started before.

    Returns:
        0 when something is `ok` or `verified` and nothing is wrong, 1 when a row is `incorrect` or `failed`,
        3 when everything was skipped.

    Raises:
        ConfigError: Every job is wrong whatever the machine, or what is to be resumed cannot be.
        Terminated: SIGTERM or SIGHUP came; what was measured is on disk, and no process is left.
    """
    home = jobs[0].folder.parent
    with ExitStack() as stack:
        stack.enter_context(_terminable())
        outcome = _begun(home, settings, stack)
        measures, tracks = settings.isolation == "process", settings.tracking.kind != "none"
        ahead = ahead or stack.enter_context(Ahead(measures, tracks))
        ahead.keep(measures, tracks)
        workers = stack.enter_context(Workers(settings, say, ahead.started, [job.experiment for job in jobs]))
        workers.start(jobs[0].experiment.device)
        store = ahead.store() if tracks else None
        if store:
            store.begin(settings.tracking)
            artifacts.prepare()
        again = tracking.sync_command(settings.tracking, home)
        connected, ready = (store.connected, store.ready) if store else (None, None)
        tracker = BestEffort(connected, home, command, settings.resumes, say, again, ready)
        status = "KILLED"
        try:
            _measure(jobs, settings, workers, tracker, outcome)
            status = "FAILED" if exit_code(outcome.rows) == 1 else "FINISHED"
        except ResultsError as error:
            status = "FAILED"
            say(f"kvexp: {error}")
            return 1
        finally:
            # The device is on its way to be free before a store that is slow to answer is told of the end.
            workers.end()
            _end(outcome, home, settings.repeat, tracker, status)
    return exit_code(outcome.rows)


def exit_code(rows: Sequence[Row]) -> int:
    """0, 1 or 3; see `run`."""
    if failures.are_wrong(rows):
        return 1
    return 0 if any(row["status"] in RIGHT for row in rows) else 3


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the sweep as Ctrl-C does: no process is left, and the store is told.

    One that is ignored stays so: `nohup` means it.

    Raises:
        Terminated: One of them came.
    """

    def terminate(number: int, _: object) -> None:
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begun(home: Path, settings: SweepSettings, stack: ExitStack) -> Outcome:
    """The folder is this sweep's alone, and what is right in it is known.

    Raises:
        ConfigError: Another process works there, or what it holds are no rows.
    """
    home.mkdir(parents=True, exist_ok=True)
    stack.enter_context(sweep_dir.sweeping(home))
    try:
        return Outcome(sweep_dir.done(home) if settings.resumes else {})
    except KvexpError as error:
        raise ConfigError(f"{home} cannot be resumed: {error}") from error


def _measure(
    jobs: Sequence[Job], settings: SweepSettings, workers: Workers, tracker: BestEffort, outcome: Outcome
) -> None:
    """Every job's rows are in the outcome, on disk and tracked.

    A curve that only the measuring process finds wrong (a class that is not there, an option that it does not
    take) costs that curve alone: its rows are `failed`.

    Raises:
        ConfigError: Every curve is wrong whatever the machine.
        ResultsError: A row cannot be written.
    """
    wrong: list[tuple[Job, Begun, ConfigError]] = []
    total = sum(len(job.experiment.workload.num_tokens) for job in jobs)
    repetition = jobs[0].repetition
    with Progress(total, Console(stderr=True)) as progress:
        for job in jobs:
            if job.repetition != repetition:
                workers.close()
                repetition = job.repetition
            begun = curve_run.begin(job.experiment, workers, outcome.done.get(repetition or 1, {}))
            # Where the host is not minded, the store is begun, and sent each curve, beside the next one.
            if begun.minds_the_host:
                tracker.settle()
            elif settings.resumes:
                tracker.start()
            progress.curve(job.label + (f" ({repetition} of {settings.repeat})" if repetition else ""))
            try:
                points = begun.points() if begun.minds_the_host else _beside(begun.points(), tracker.poll)
                curve = _kept(job, begun, points, progress, outcome, settings.fail_fast)
            except ConfigError as error:
                wrong.append((job, begun, error))
                curve = []
            else:
                tracker.log_curve(job.folder, job.experiment.impl.target, curve)
            if settings.fail_fast and (wrong or failures.are_wrong(curve)):
                break
        if wrong and not outcome.rows:
            raise wrong[0][2]
        for job, begun, why in wrong:
            progress.curve(job.label)
            curve = _kept(job, begun, begun.left(0, "failed", str(why)), progress, outcome, False)
            tracker.log_curve(job.folder, job.experiment.impl.target, curve)
        outcome.untried = total - progress.done


def _beside(points: Iterator[Point], work: Callable[[], None]) -> Iterator[Point]:
    """The points; after each the work is done."""
    for measured in points:
        yield measured
        work()


def _kept(
    job: Job, begun: Begun, points: Iterator[Point], progress: Progress, outcome: Outcome, fail_fast: bool
) -> list[Row]:
    """The new rows of one curve, each written, flushed and synced before the next is measured.

    Raises:
        ConfigError: The curve is wrong whatever the machine; it has no rows.
        ResultsError: A row cannot be written.
    """
    curve: list[Row] = []
    file: RowFile | None = None
    number = job.repetition or 1
    done = outcome.done.setdefault(number, {})
    there = [done[tried] for tried in begun.there if (number, tried) not in outcome.points]
    if len(there) < len(begun.there):
        as_what = _resolved(done[begun.there[0]])
        say(f"kvexp: {job.label} is there already, as {as_what}; it is not measured twice")
    for row, samples_us in points:
        if job.repetition:
            row[REPETITION] = job.repetition
        try:
            file = file or RowFile(job.folder)
            file.append(row, samples_us)
        except OSError as error:
            raise ResultsError(
                f"cannot write {job.folder / 'rows.jsonl'} ({error.strerror}), so the sweep stops; "
                f"the {sum(len(rows) for _, rows in outcome.curves)} rows before it are whole"
            ) from error
        if not curve:
            outcome.curves.append((job, curve))
        curve.append(row)
        outcome.rows.append(row)
        if row["status"] in RIGHT:
            done[point(row)] = row
            outcome.points.add((number, point(row)))
        progress.advance(row)
        if fail_fast and failures.are_wrong([row]):
            break
    progress.there(len(begun.there))
    outcome.rows += there
    outcome.points |= {(number, tried) for tried in begun.there}
    return curve


def _resolved(row: Row) -> str:
    """What `auto` meant."""
    return " ".join(f"{column}={row[column]}" for column in ("device", "mode", "timer"))


def _end(outcome: Outcome, home: Path, repeat: int, tracker: BestEffort, status: str) -> None:
    """The outcome is told, and the store has the sweep's end and report, whatever interrupts that.

    Nothing that is told waits for the store. The report is drawn while the last curve arrives there.
    """
    with ExitStack() as last:
        if outcome.rows:
            last.callback(tracker.send_report)
        last.callback(tracker.end, status)
        if outcome.rows:
            if status != "KILLED":  # that one's report is left to a sync
                last.callback(tracker.draw_report)
            last.callback(tracker.start)
            tracker.poll()
            curves = [(job.label, job.words, rows) for job, rows in outcome.curves]
            tell(outcome.rows, curves, home, repeat, outcome.untried)
