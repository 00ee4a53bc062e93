"""Measure one curve and get a row for each of its points, also when the measuring process dies."""

import datetime
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from kvexp.errors import Unsupported, WorkerDied
from kvexp.experiment import Experiment
from kvexp.host.process import LineChild
from kvexp.measurement import Measurement, Status
from kvexp.results.point_identity import Identity, identify_in_workload
from kvexp.sweep.inline_worker import InlineWorker
from kvexp.sweep.settings import SweepSettings
from kvexp.sweep.subprocess_worker import Point, Worker


@dataclass
class WorkerSupervisor:
    """The one measuring process, replaced when it died or another device is asked for.

    Attributes:
        settings: How to measure.
        say: Called with a line, once, when another kvexp process has the GPU.
        take_child: Returns a process that was started before its device was known, if there is one.
        coming: All curves of the sweep.
    """

    settings: SweepSettings
    say: Callable[[str], None]
    take_child: Callable[[], LineChild | None] = lambda: None
    coming: Sequence[Experiment] = ()
    _said_wait: bool = field(default=False, init=False)
    _left_behind: set[str] = field(default_factory=set, init=False)
    _worker: Worker | InlineWorker | None = field(default=None, init=False)

    def kill(self) -> None:
        """Kill the process without waiting; `close` waits."""
        if self._worker:
            self._worker.kill()

    def close(self) -> None:
        """End the process."""
        if self._worker:
            self._worker.close()
            if self._worker.left_behind:
                self._left_behind.add(self._worker.left_behind)

    def start(self, device: str) -> Worker | InlineWorker:
        """Return a live process for the device; perhaps it is not ready yet."""
        worker = self._worker
        if worker is None or worker.requested != device or not (worker.alive or worker.refusal):
            self.close()
            if self.settings.isolation == "inline":
                worker = InlineWorker(device, self._report_wait)
            else:
                child = self.take_child()
                worker = Worker(device, self.settings.timeout_s, self._report_wait, child, self.coming)
            self._worker = worker
        return worker

    def _report_wait(self, holder: str | None) -> None:
        if holder in self._left_behind:
            self.close()
            raise WorkerDied(f"the GPU is held by {holder} of this sweep, which could not be ended")
        if holder and not self._said_wait:
            self._said_wait = True
            self.say(f"kvexp: waiting for {holder}, which measures a curve on this GPU; sweeps take turns")


@dataclass(frozen=True)
class CurveRun:
    """A curve that is about to be measured.

    Attributes:
        experiment: The curve, resolved if the device is known.
        worker: Who measures it.
        wanted: The `num_tokens` to measure.
        already_done: The points skipped because they have a correct row.
        unmeasurable: The status and the reason of every point, if nothing can be measured.
    """

    experiment: Experiment
    worker: Worker | InlineWorker
    wanted: Sequence[int]
    already_done: Sequence[Identity] = ()
    unmeasurable: tuple[Status, str] | None = None

    @property
    def is_host_sensitive(self) -> bool:
        """Say whether host load can affect the measured times."""
        return self.worker.is_host_sensitive

    def measure(self) -> Iterator[Point]:
        """Yield the points in order; those that a dead process or a missing device leaves are rows too.

        Raises:
            ConfigError: The curve is wrong whatever the machine.
        """
        if self.unmeasurable:
            yield from self.give_up(0, *self.unmeasurable)
            return
        num_measured = 0
        try:
            for measured in self.worker.measure(self.wanted):
                yield measured
                num_measured += 1
        except WorkerDied as death:
            yield from self.give_up(num_measured, "failed", str(death))

    def give_up(self, num_measured: int, status: Status, reason: str) -> Iterator[Point]:
        """Yield the wanted points after the first `num_measured`, with that outcome."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
        for case in self.experiment.cases():
            if case.num_tokens in self.wanted[num_measured:]:
                environment = self.worker.columns
                yield Measurement(case, status, reason, started_at=now, environment=environment).row(), ()


def begin(experiment: Experiment, supervisor: WorkerSupervisor, done: Collection[Identity]) -> CurveRun:
    """Send the worker the curve, without the points that are among the `done`; see `point_identity`."""
    worker = supervisor.start(experiment.device)
    every = list(experiment.workload.num_tokens)
    try:
        worker.wait()
        experiment = experiment.resolve(worker.device)
        worker.open(experiment)
        points = {
            case.num_tokens: identify_in_workload({**asdict(case), **worker.columns})
            for case in experiment.cases()
        }
    except Unsupported as refusal:
        return CurveRun(experiment, worker, every, unmeasurable=("skipped", str(refusal)))
    except WorkerDied as death:
        return CurveRun(experiment, worker, every, unmeasurable=("failed", str(death)))
    wanted = [num_tokens for num_tokens, identity in points.items() if identity not in done]
    already_done = [identity for identity in points.values() if identity in done]
    return CurveRun(experiment, worker, wanted, already_done)
