"""Run a sweep: measure its curves, write and track their rows, print the summary.

Imports neither torch nor MLflow: child processes do, while this one composes the curves.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kvexp import tracking
from kvexp.errors import ConfigError, KvexpError, ResultsError
from kvexp.host.terminal import say
from kvexp.measurement import Row, is_right, is_wrong
from kvexp.results import sweep_dir
from kvexp.results.point_identity import get_repetition, identify_in_workload, identify_on_any_gpu
from kvexp.results.row_file import TRACEBACKS
from kvexp.sweep.crew import Crew, Step
from kvexp.sweep.curve_run import CurveRun, WorkerSupervisor
from kvexp.sweep.job import Job, name_jobs
from kvexp.sweep.outcome import CurveRecord, Outcome
from kvexp.sweep.place import HERE, Place
from kvexp.sweep.prestart import Prestart
from kvexp.sweep.progress import CurveProgress, Progress
from kvexp.sweep.settings import SweepSettings
from kvexp.sweep.signals import raise_on_signals
from kvexp.sweep.summary import print_summary
from kvexp.tracking import artifacts
from kvexp.tracking.best_effort import BestEffort


def run(
    jobs: Sequence[Job],
    settings: SweepSettings,
    command: str,
    prestart: Prestart | None = None,
    resume_command: str = "",
    places: Sequence[Place] = HERE,
) -> int:
    """Measure every job as one sweep, and return its exit code; see `open_sweep` and `Sweep`."""
    home = jobs[0].folder.parent
    wanted = sum(job.num_points for job in jobs)
    with open_sweep(home, settings, command, prestart, resume_command, places, wanted) as sweep:
        sweep.measure(name_jobs(jobs))
    return sweep.code


@contextmanager
def open_sweep(
    home: Path,
    settings: SweepSettings,
    command: str,
    prestart: Prestart | None = None,
    resume_command: str = "",
    places: Sequence[Place] = HERE,
    wanted: int = 0,
) -> Iterator["Sweep"]:
    """Hold the sweep's folder, its processes and its store; in the end print the table and send the report.

    Where a row cannot be written, the block ends there: that is said, and the sweep's exit code is 1.

    Args:
        home: The sweep's folder.
        settings: How the sweep is run.
        command: What was typed; stored with the sweep.
        prestart: The processes that were started before.
        resume_command: What continues the sweep where it is interrupted.
        places: Where its curves are measured, at the same time.
        wanted: How many points there will be at least.

    Raises:
        ConfigError: What is to be resumed cannot be.
        Terminated: SIGTERM or SIGHUP came; what was measured is on disk, and no process is left.
    """
    with ExitStack() as stack:
        stack.enter_context(raise_on_signals())
        outcome = _open_folder(home, settings, len(places) > 1, stack)
        outcome.wanted = wanted
        stack.enter_context(_report_interruption(outcome, resume_command))
        tracks = settings.tracking.kind != "none"
        measures = settings.isolation == "process" and not all(place.start_child for place in places)
        prestart = prestart or stack.enter_context(Prestart(measures, tracks))
        prestart.keep(measures, tracks)
        supervisors = [WorkerSupervisor(settings, say, place, prestart.take_child) for place in places]
        crew = stack.enter_context(closing(Crew(supervisors, say)))
        tracker = _start_tracking(home, settings, command, prestart if tracks else None)
        sweep = Sweep(settings, crew, tracker, outcome)
        status = "KILLED"
        try:
            yield sweep
            status = "FAILED" if sweep.code == 1 else "FINISHED"
        except ResultsError as error:
            status, sweep.is_broken = "FAILED", True
            say(f"kvexp: {error}")
        finally:
            # The GPU's memory is freed while a slow store is told of the end.
            crew.kill()
            _finish(outcome, home, settings, tracker, status)


@dataclass
class Sweep:
    """The curves of one sweep, measured in one or more batches.

    Attributes:
        settings: How the sweep is run.
        crew: Who measures.
        tracker: The store.
        outcome: What was measured.
        is_broken: Whether the sweep ended before its curves did.
    """

    settings: SweepSettings
    crew: Crew
    tracker: BestEffort
    outcome: Outcome
    is_broken: bool = False
    _asked: int = field(default=0, init=False)
    _left: int = field(default=0, init=False)
    _rounds: int = field(default=1, init=False)
    _may_repeat: bool = field(default=False, init=False)
    _closed: dict[int, CurveRecord] = field(default_factory=dict, init=False)
    _open: dict[int, "_OpenCurve"] = field(default_factory=dict, init=False)

    @property
    def code(self) -> int:
        """The exit code: 1 when a row is wrong or the sweep is broken, else as `exit_code` says."""
        return 1 if self.is_broken else exit_code(self.outcome.rows)

    def measure(
        self, jobs: Sequence[Job], *, anew: bool = False, may_repeat: bool = False
    ) -> list[list[Row]]:
        """Measure and track every job, round by round; return the rows of each.

        With `anew` those points are measured, too, that are right already. With `may_repeat` it is no news
        that a curve was there before.

        A curve that only the measuring process finds wrong (a class that is not there, an option that it does
        not take) costs that curve alone: its rows are `failed`, and come last.

        Raises:
            ConfigError: Every curve is wrong whatever the machine.
            ResultsError: A row cannot be written.
        """
        wrong: list[tuple[Job, CurveRun, ConfigError]] = []
        self._closed = {}
        self._may_repeat = may_repeat
        self._rounds = max(job.repetition or 1 for job in jobs)
        total = sum(job.num_points for job in jobs)
        self._asked += total
        self.outcome.wanted = max(self.outcome.wanted, self._asked)
        self._left = total
        claim = (lambda job, point: True) if anew else self.outcome.claim
        with Progress(total) as progress:
            with closing(self.crew.measure(jobs, claim, self.outcome.find_gpus())) as steps:
                for step in steps:
                    has_failed = self._take(step, progress)
                    if step.error:
                        wrong.append((step.job, step.curve, step.error))
                    if has_failed and self.settings.fail_fast:
                        break
            for curve in [*self._open.values()]:
                self._end_curve(curve)
            if wrong and not self.outcome.rows:
                raise wrong[0][2]
            for job, run, why in wrong:
                curve = self._begin_curve(job, run, progress)
                for point in run.give_up(0, "failed", str(why)):
                    curve.shown.advance(curve.record.add(point))
                self._end_curve(curve)
        self.outcome.untried += self._left
        self.is_broken |= self._left > 0
        return [self._closed[id(job)].list_rows() if id(job) in self._closed else [] for job in jobs]

    def _take(self, step: Step, progress: Progress) -> bool:
        """Deal with a step of a curve, and return whether it shows that something is wrong."""
        curve = self._open.get(id(step.job)) or self._begin_curve(step.job, step.curve, progress, step.place)
        is_failure = step.error is not None
        if step.point:
            row = curve.record.add(step.point)
            curve.shown.advance(row)
            is_failure = is_wrong(row["status"])
            if not any(one.record.curve.is_host_sensitive for one in self._open.values()):
                self.tracker.poll()
        if step.error:
            self._open.pop(id(step.job))
            self.outcome.release(step.job)
        elif step.is_over:
            self._end_curve(curve)
        return is_failure

    def _begin_curve(self, job: Job, run: CurveRun, progress: Progress, place: str = "") -> "_OpenCurve":
        if run.is_host_sensitive:
            self.tracker.settle()
        number = f" ({job.repetition} of {self._rounds})" if job.repetition else ""
        shown = progress.start_curve(job.name + number + (f" on {place}" if place else ""))
        record = CurveRecord(job, run, self.outcome)
        if not self._may_repeat:
            record.report_twin()
        curve = self._open[id(job)] = _OpenCurve(record, shown)
        return curve

    def _end_curve(self, curve: "_OpenCurve") -> None:
        record = self._closed[id(curve.record.job)] = self._open.pop(id(curve.record.job)).record
        curve.shown.add_already_done(len(record.curve.already_done))
        curve.shown.finish()
        record.close()
        self._left -= len(record.new) + len(record.curve.already_done)
        self.tracker.log_curve(record.job.folder, record.job.experiment.impl.target, record.new)


@dataclass(frozen=True)
class _OpenCurve:
    """A curve that is being measured: its rows, and how it is shown."""

    record: CurveRecord
    shown: CurveProgress


@contextmanager
def _report_interruption(outcome: Outcome, resume_command: str) -> Iterator[None]:
    """Say how far the sweep came where a signal ends the block, also a second one while it ends."""
    try:
        yield
    except KeyboardInterrupt:
        reached = min(outcome.count(), outcome.wanted)
        note = f"kvexp: interrupted after {reached} of {outcome.wanted} points"
        say(note + (f"; this goes on: {resume_command}" if resume_command else ""))
        raise


def exit_code(rows: Sequence[Row]) -> int:
    """Return 0 when something is `ok` or `verified` and nothing is wrong, 1 when a row is wrong, else 3.

    A row is wrong that is `incorrect` or `failed`. With 3 everything was skipped.
    """
    if any(is_wrong(row["status"]) for row in rows):
        return 1
    return 0 if any(is_right(row["status"]) for row in rows) else 3


def _open_folder(home: Path, settings: SweepSettings, is_on_several: bool, stack: ExitStack) -> Outcome:
    """Lock the sweep's folder until the stack closes, and read which points are done if it resumes.

    Raises:
        ConfigError: Another process works there, or its rows cannot be read.
    """
    home.mkdir(parents=True, exist_ok=True)
    stack.enter_context(sweep_dir.hold_for_sweep(home))
    identify = identify_on_any_gpu if is_on_several else identify_in_workload
    try:
        return Outcome(identify, sweep_dir.read_right_rows(home, identify) if settings.resumes else {})
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


def _finish(outcome: Outcome, home: Path, settings: SweepSettings, tracker: BestEffort, status: str) -> None:
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
            curves = [(job.name, job.words, rows) for job, rows in outcome.curves]
            files = [job.folder / TRACEBACKS for job, _ in outcome.curves]
            written = [file for file in files if file.exists()]
            repeat, untried = max(map(get_repetition, outcome.rows)), _describe_untried(outcome, settings)
            print_summary(outcome.rows, curves, home, repeat, untried, written)


def _describe_untried(outcome: Outcome, settings: SweepSettings) -> str:
    """Say why points were left out, and how many; nothing when none was."""
    why = "fail_fast=true ended the sweep there" if settings.fail_fast else "no place was left to measure at"
    return f"{why}; {outcome.untried} points were not tried" if outcome.untried else ""
