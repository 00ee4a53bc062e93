"""Hand a sweep's curves out to the places that measure, and bring what they measured into one order."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, TypeVar

from kvexp.errors import ConfigError, Unsupported, WorkerDied
from kvexp.host.process import END_SECONDS, LOOK_SECONDS
from kvexp.sweep import curve_run
from kvexp.sweep.curve_run import CurveRun, WorkerSupervisor
from kvexp.sweep.job import Job
from kvexp.sweep.subprocess_worker import Point

_JOIN_SECONDS = 0.1

Claim = Callable[[Job, dict[str, Any]], bool]
"""Says whether a job's point, given as the columns of its row, is still to be measured."""


@dataclass(frozen=True)
class Step:
    """Say what happened to a curve: it begins without a point, has points, and is over.

    Attributes:
        job: The curve's.
        curve: The curve.
        place: Where it is measured, of several places; else empty.
        point: The one that was measured.
        is_over: Whether the curve has no more points.
        error: Why the curve is wrong whatever the machine, if it is; then it is over.
    """

    job: Job
    curve: CurveRun
    place: str
    point: Point | None = None
    is_over: bool = False
    error: ConfigError | None = None


@dataclass
class Crew:
    """The places of one sweep, each with its measuring process.

    What is handed out is a round, where curves are measured in rounds: so the curves that it compares are
    measured by one process on one GPU. Else it is a curve.

    Attributes:
        supervisors: One for each place.
        say: Called with a sentence when a place is lost.
    """

    supervisors: Sequence[WorkerSupervisor]
    say: Callable[[str], None]
    _units: list[list[Job]] = field(default_factory=list, init=False)
    _gpus: dict[int, str] = field(default_factory=dict, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _num_taken: int = field(default=0, init=False)
    _is_closed: bool = field(default=False, init=False)
    _lost: list[WorkerSupervisor] = field(default_factory=list, init=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False)

    def measure(self, jobs: Sequence[Job], claim: Claim, gpus: dict[int, str]) -> Generator[Step]:
        """Yield each step of the jobs' curves; a place goes on when its last step was dealt with.

        Several places measure at the same time. One whose process cannot be started is left out, and when
        none is left the other curves have no steps.

        Args:
            jobs: The curves, round by round.
            claim: Asked before a curve begins, for each of its points.
            gpus: By round, the UUID of the GPU that began it in an earlier start of the sweep.
        """
        self._units = [list(unit) for _, unit in groupby(jobs, key=lambda job: job.repetition or id(job))]
        self._gpus = gpus
        there = [supervisor for supervisor in self.supervisors if supervisor not in self._lost]
        for number, supervisor in enumerate(there):
            # Each begins elsewhere to ask about the contract, and finds what the others have asked.
            first = number * len(jobs) // len(there)
            supervisor.coming = [job.experiment for job in [*jobs[first:], *jobs[:first]]]
            supervisor.start(jobs[0].experiment.device)
        work = [self._work(supervisor, claim) for supervisor in there]
        yield from work[0] if len(self.supervisors) == 1 else interleave(work, self._threads)

    def kill(self) -> None:
        """Kill the measuring processes without waiting; `close` waits."""
        self._is_closed = True
        for supervisor in self.supervisors:
            supervisor.kill()

    def close(self) -> None:
        """End the measuring processes."""
        until = time.monotonic() + END_SECONDS
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < until:
            self.kill()  # a thread may have started another one meanwhile
            for thread in self._threads:
                thread.join(_JOIN_SECONDS)
        for supervisor in self.supervisors:
            supervisor.close()

    def _work(self, supervisor: WorkerSupervisor, claim: Claim) -> Iterator[Step]:
        """Measure unit after unit at one place, as long as the place is there."""
        unit: list[Job] = []
        is_used = False
        place = supervisor.place.name if len(self.supervisors) > 1 else ""
        while len(self.supervisors) == 1 or self._is_ready(supervisor, unit):
            if not unit:
                unit = self._take(supervisor.gpu)
                if not unit:
                    return
                if is_used and unit[0].repetition:  # each round has a process of its own
                    supervisor.close()
                    continue
            is_used = True
            yield from _measure_curve(unit.pop(0), supervisor, claim, place)
            if not unit:
                self._give_back(unit)

    def _is_ready(self, supervisor: WorkerSupervisor, unit: list[Job]) -> bool:
        """Return whether the place has a process that can measure; else give back the rest of its unit."""
        try:
            supervisor.start().wait()
        except (Unsupported, WorkerDied) as error:
            self.say(f"kvexp: {supervisor.place.name} is left out: {error}")
            self._lost.append(supervisor)
            if unit:
                self._give_back(unit)
            return False
        return True

    def _take(self, gpu: str) -> list[Job]:
        """Take the next unit for the GPU, first a round that it has begun; an empty one at the end.

        While others measure, what they have taken may come back.
        """
        with self._changed:
            while not self._units and self._num_taken and not self._is_closed:
                self._changed.wait(LOOK_SECONDS)
            own = [unit for unit in self._units if self._gpus.get(unit[0].repetition or 0, gpu) == gpu]
            unit = next(iter(own if own and len(self.supervisors) > 1 else self._units), [])
            if unit:
                self._units.remove(unit)
                self._num_taken += 1
            return unit

    def _give_back(self, unit: list[Job]) -> None:
        """Say that what was taken is done, but for these jobs."""
        with self._changed:
            self._num_taken -= 1
            self._units[:0] = [unit] if unit else []
            self._changed.notify_all()


def _measure_curve(job: Job, supervisor: WorkerSupervisor, claim: Claim, place: str) -> Iterator[Step]:
    curve = curve_run.begin(job.experiment, supervisor, lambda point: claim(job, point))
    begin = Step(job, curve, place)
    yield begin
    try:
        for point in curve.measure():
            yield replace(begin, point=point)
    except ConfigError as error:
        yield replace(begin, is_over=True, error=error)
    else:
        yield replace(begin, is_over=True)


T = TypeVar("T")


def interleave(sources: Sequence[Iterator[T]], threads: list[threading.Thread]) -> Iterator[T]:
    """Yield the items of all iterators as they come; each is run in a thread, which is added to `threads`.

    An iterator is asked for its next item when the caller asks for one after its last. An error of one ends
    all. When the caller stops, no iterator is asked again.
    """
    found: queue.SimpleQueue[tuple[int, list[T], BaseException | None]] = queue.SimpleQueue()
    turns = [threading.Semaphore(0) for _ in sources]
    is_over = threading.Event()

    def run(number: int, source: Iterator[T]) -> None:
        error: BaseException | None = None
        try:
            for item in source:
                found.put((number, [item], None))
                turns[number].acquire()
                if is_over.is_set():
                    return
        except BaseException as raised:  # noqa: BLE001  # the caller gets it
            error = raised
        found.put((number, [], error))

    own = [
        threading.Thread(target=run, args=pair, name=f"kvexp place {pair[0]}", daemon=True)
        for pair in enumerate(sources)
    ]
    threads += own
    for thread in own:
        thread.start()
    left = len(sources)
    try:
        while left:
            try:
                number, items, error = found.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if error:
                raise error
            left -= not items
            yield from items
            turns[number].release()
    finally:
        is_over.set()
        for turn in turns:
            turn.release()
