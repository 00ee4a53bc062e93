"""The points of one curve, whatever becomes of the process that measures them."""

import datetime
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass

from kvexp.errors import Unsupported, WorkerDied
from kvexp.experiment import Experiment
from kvexp.measurement import Measurement, Status
from kvexp.results.rows import Identity, point
from kvexp.sweep.inline_worker import Inline
from kvexp.sweep.settings import SweepSettings
from kvexp.sweep.subprocess_worker import Point, Started, Worker


class Workers:
    """The one measuring process, replaced when it died or another device is asked for.

    Args:
        settings: How to measure.
        say: Told once, in a line, when another kvexp process has the GPU.
        started: Gives a process that was started before its device was known, where there is one.
        coming: All curves of the sweep.
    """

    def __init__(
        self,
        settings: SweepSettings,
        say: Callable[[str], None],
        started: Callable[[], Started | None] = lambda: None,
        coming: Sequence[Experiment] = (),
    ) -> None:
        self._settings = settings
        self._say = say
        self._started = started
        self._coming = coming
        self._told = False
        self._left_behind: set[str] = set()
        self._worker: Worker | Inline | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def end(self) -> None:
        """The process is being ended."""
        if self._worker:
            self._worker.end()

    def close(self) -> None:
        """No process is left."""
        if self._worker:
            self._worker.close()
            if self._worker.left_behind:
                self._left_behind.add(self._worker.left_behind)

    def start(self, device: str) -> Worker | Inline:
        """A live process for the device; perhaps not ready yet."""
        worker = self._worker
        if worker is None or worker.requested != device or not (worker.alive or worker.refusal):
            self.close()
            if self._settings.isolation == "inline":
                worker = Inline(device, self._waits)
            else:
                worker = Worker(device, self._settings.timeout_s, self._waits, self._started(), self._coming)
            self._worker = worker
        return worker

    def _waits(self, holder: str | None) -> None:
        if holder in self._left_behind:
            self.close()
            raise WorkerDied(f"the GPU is held by {holder} of this sweep, which could not be ended")
        if holder and not self._told:
            self._told = True
            self._say(f"kvexp: waiting for {holder}, which measures a curve on this GPU; sweeps take turns")


@dataclass(frozen=True)
class Begun:
    """A curve that is about to be measured.

    Attributes:
        experiment: The curve, resolved where the device is known.
        worker: Who measures it.
        wanted: The `num_tokens` that are to be tried.
        there: The points that are not, since they are right already.
        end: The status and the reason of every point, where nothing can be measured.
    """

    experiment: Experiment
    worker: Worker | Inline
    wanted: Sequence[int]
    there: Sequence[Identity] = ()
    end: tuple[Status, str] | None = None

    @property
    def minds_the_host(self) -> bool:
        """Whether what else runs on this host can show in the curve's figures.

        It cannot where the GPU's own clock is asked and a replay is one launch.
        """
        e = self.experiment
        return e.device == "cpu" or e.mode.name != "cudagraph" or e.timer.name == "wall_clock"

    def points(self) -> Iterator[Point]:
        """The points in order; those that a dead process or a missing device leaves are rows too.

        Raises:
            ConfigError: The curve is wrong whatever the machine.
        """
        if self.end:
            yield from self.left(0, *self.end)
            return
        tried = 0
        try:
            for point in self.worker.points(self.wanted):
                yield point
                tried += 1
        except WorkerDied as death:
            yield from self.left(tried, "failed", str(death))

    def left(self, tried: int, status: Status, reason: str) -> Iterator[Point]:
        """The wanted points after the first `tried`, which nobody measured."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
        for case in self.experiment.cases():
            if case.num_tokens in self.wanted[tried:]:
                columns = self.worker.columns
                yield Measurement(case, status, reason, started_at=now, environment=columns).row(), ()


def begin(experiment: Experiment, workers: Workers, done: Collection[Identity]) -> Begun:
    """The worker knows the curve; the points that are among the `done`, see `rows.point`, are left out."""
    worker = workers.start(experiment.device)
    every = list(experiment.workload.num_tokens)
    try:
        worker.wait()
        experiment = experiment.resolve(worker.device)
        worker.open(experiment)
        points = {case.num_tokens: point({**asdict(case), **worker.columns}) for case in experiment.cases()}
        wanted = [num_tokens for num_tokens, tried in points.items() if tried not in done]
    except Unsupported as refusal:
        return Begun(experiment, worker, every, end=("skipped", str(refusal)))
    except WorkerDied as death:
        return Begun(experiment, worker, every, end=("failed", str(death)))
    there = [tried for tried in points.values() if tried in done]
    return Begun(experiment, worker, wanted, there)
