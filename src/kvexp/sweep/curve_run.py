"""Measure one curve and get a row for each of its points, also when the measuring process dies."""

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvexp.errors import Unsupported, WorkerDied
from kvexp.experiment import Experiment
from kvexp.host.process import LineChild
from kvexp.measurement import Measurement, Status
from kvexp.sweep import versions
from kvexp.sweep.inline_worker import InlineWorker
from kvexp.sweep.place import HERE, Place
from kvexp.sweep.settings import SweepSettings
from kvexp.sweep.subprocess_worker import Point, Worker


@dataclass
class WorkerSupervisor:
    """The one measuring process of a place, replaced when it died or another device is asked for.

    Attributes:
        settings: How to measure.
        say: Called with a line, once, when another kvexp process has the GPU.
        place: Where it measures.
        take_child: Returns a process that was started before its device was known, if there is one.
        coming: All curves of the sweep.
    """

    settings: SweepSettings
    say: Callable[[str], None]
    place: Place = HERE[0]
    take_child: Callable[[], LineChild | None] = lambda: None
    coming: Sequence[Experiment] = ()
    _compares: bool = field(default=True, init=False)
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

    @property
    def gpu(self) -> str:
        """The UUID of the GPU that the process measures on; empty without one, and before it is known."""
        environment = self._worker.environment if self._worker else {}
        return environment.get("device_uuid") or ""

    def start(self, device: str = "") -> Worker | InlineWorker:
        """Return a live process for the place's device, or for the given one; perhaps it is not ready yet."""
        worker, device = self._worker, self.place.device or device
        if worker is None or worker.requested != device or not (worker.alive or worker.refusal):
            self.close()
            if self.settings.isolation == "inline":
                worker = InlineWorker(device, self._report_wait)
            else:
                start = self.place.start_child
                child = start() if start else self.take_child()
                coming = [replace(curve, device=self.place.device or curve.device) for curve in self.coming]
                where = self.place.visible
                worker = Worker(device, self.settings.timeout_s, self._report_wait, child, coming, where)
            self._worker = worker
        return worker

    def compare_versions(self) -> None:
        """Say once what another machine has in another version than this one; its process is ready."""
        if self.place.start_child and self._compares and self._worker:
            self._compares = False
            for difference in versions.list_differences(self._worker.environment):
                self.say(f"kvexp: {self.place.name} has {difference}; its rows say so")

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
        already_done: The columns of the points that are not measured, since they have a correct row.
        unmeasurable: The status and the reason of every point, if nothing can be measured.
    """

    experiment: Experiment
    worker: Worker | InlineWorker
    wanted: Sequence[int]
    already_done: Sequence[dict[str, Any]] = ()
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


def begin(
    experiment: Experiment,
    supervisor: WorkerSupervisor,
    claim: Callable[[dict[str, Any]], bool] = lambda _: True,
) -> CurveRun:
    """Send the worker the curve, without the points that `claim` leaves out, given their columns."""
    worker = supervisor.start(experiment.device)
    every = list(experiment.workload.num_tokens)
    try:
        worker.wait()
        supervisor.compare_versions()
        experiment = experiment.resolve(worker.device)
        worker.open(experiment)
    except Unsupported as refusal:
        return CurveRun(experiment, worker, every, unmeasurable=("skipped", str(refusal)))
    except WorkerDied as death:
        return CurveRun(experiment, worker, every, unmeasurable=("failed", str(death)))
    points = [{**case.columns(), **worker.columns} for case in experiment.cases()]
    wanted = [point for point in points if claim(point)]
    already_done = [point for point in points if point not in wanted]
    return CurveRun(experiment, worker, [point["num_tokens"] for point in wanted], already_done)
