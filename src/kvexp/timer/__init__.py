"""Time the calls of a point: one file for each timer, and the sampling that all of them share.

Imports op, gpu, statistics, and the experiment, case and errors below them.
"""

import secrets
import statistics as stats
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from kvexp.errors import Unsupported
from kvexp.op import Call
from kvexp.timer.replay import Prepare, Replay, Turns
from kvexp.timer.replay_plan import ONCE, Plan, plan_on_cpu, plan_on_gpu
from kvexp.timer.stopping_criterion import StoppingCriterion, collect_samples

Audit = Callable[[int], None]
"""Check what a sample wrote, given the index of its run; raise IncorrectResult where it is wrong."""


@dataclass(frozen=True)
class Timing:
    """Samples of one call's latency.

    Attributes:
        samples_us: Microseconds, of each sample.
        host_us: The host's median time for an eager call.
        last_run: Index of the run that was sampled last.
    """

    samples_us: tuple[float, ...]
    host_us: float | None = None
    last_run: int = 0


class Timer:
    """What an option in conf/timer names: a clock, or a reason to read none.

    A timer that is no clock says so in `untimed`; the others define `make_replay`.

    Attributes:
        name: Its name in the configuration.
        untimed: Why points are verified and not timed; empty where they are timed.
        needs_gpu: It works on a GPU alone.
        has_gpu_clock: It tells GPU time alone, in either mode. Only then can the L2 state be chosen, and an
            empty kernel is measured.
        runs_copy: It has a use for the equal copy, not for implementations alone.
        device: `cuda:N` or `cpu`.
        mode: `cudagraph` or `no_graph`.
        cache: Whether a call's slots are `cold` or `hot` in the L2; `auto` is cold where that is possible.
        inputs: Whether its keys and values are `cold` or `hot`.
        criterion: When to stop sampling.
    """

    name: str
    untimed = ""
    needs_gpu = False
    has_gpu_clock = False
    runs_copy = True

    def __init__(
        self, device: str, mode: str, cache: str = "auto", inputs: str = "hot", **stopping: Any
    ) -> None:
        self.device, self.mode, self.cache, self.inputs = device, mode, cache, inputs
        self.criterion = StoppingCriterion(**stopping)

    @property
    def is_host_sensitive(self) -> bool:
        """Say whether host load can affect the times: not where a GPU's clock times one launch."""
        is_graph = self.device != "cpu" and self.mode == "cudagraph"
        return not (is_graph and (self.untimed or self.has_gpu_clock))

    def check(self) -> None:
        """Check that the device, and what is installed, have what the timer needs; else raise Unsupported."""
        if self.needs_gpu and not self.device.startswith("cuda"):
            raise Unsupported(f"timer={self.name} needs a GPU; on device={self.device} use timer=wall_clock")

    def open(self) -> AbstractContextManager[None]:
        """Open what the timer needs while a curve is measured; raise Unsupported where it cannot be."""
        return nullcontext()

    def plan(self, places: int, read: int, written: int, l2_bytes: int | None) -> Plan:
        """Plan the replay of a point whose calls read and write so many bytes; a CPU has no `l2_bytes`.

        For `places` see `op.Op.count_places`.

        Raises:
            Unsupported: The L2 cannot be in the state that was asked for.
        """
        if self.has_gpu_clock and l2_bytes is not None:
            moved, graph = read + written, self.mode == "cudagraph"
            return plan_on_gpu(places, moved, written, l2_bytes, graph, self.cache, self.inputs)
        if (self.cache, self.inputs) != ("auto", "hot"):
            raise Unsupported(
                f"timer.cache={self.cache} timer.inputs={self.inputs} needs a GPU and timer=cuda_event "
                "or cupti; elsewhere they are auto and hot"
            )
        if l2_bytes is None:
            return plan_on_cpu(places, read + written)
        # One call, again and again: the same slots and the same rows.
        return replace(ONCE, cache_state="hot", inputs_state="hot")

    def make_replay(self, prepare: Prepare, turns: Turns, plan: Plan, flush_l2: Call | None) -> Replay:
        """Prepare the calls of each turn as one run, and what times it.

        Where `flush_l2` is given, it drives the cache's slots out of the L2 before each series.
        """
        raise NotImplementedError

    def run_untimed(self, calls: Sequence[Call], title: str) -> None:
        """Run the verified calls of a point of that title, if the timer wants them without timing them."""


def time_replay(replay: Replay, criterion: StoppingCriterion, audit: Audit | None = None) -> Timing:
    """Take samples of one call's latency until the criterion is met.

    The audit is called after one of the first `min_samples` that count, and after the one behind it: what
    runs that do nothing leave cannot be right for both. That sample is drawn anew each time, so that no call
    can know which it is. Where the audit could affect the samples behind it, two are discarded.

    Raises:
        KvexpError: A sample cannot be taken, see the clock; or the audit has found wrong bytes.
    """
    before = len(replay.host_us)
    certain = max(1, min(criterion.min_samples, criterion.max_samples))
    first = criterion.warmup + secrets.randbelow(certain)
    audited = range(first, first + 2)
    # The first run has just been checked, and its rows are in the slots.
    turns = cycle([*range(1, len(replay.runs)), 0])
    taken = last_run = 0

    def take() -> float:
        nonlocal taken, last_run
        taken, last_run = taken + 1, next(turns)
        return replay.sample(last_run)

    def sample() -> float:
        latency_us = take()
        if audit and taken - 1 in audited:
            audit(last_run)
            if not replay.flushes_l2:
                take()
                audit(last_run)
                take()
        return latency_us

    samples = collect_samples(sample, criterion)
    host_us = list(replay.host_us[before:])
    if audit and not replay.flushes_l2:
        del host_us[first + 1 : first + 3]
    host_us = host_us[criterion.warmup :]
    return Timing(samples, stats.median(host_us) if host_us else None, last_run)
