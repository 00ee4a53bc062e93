"""Whose clock: samples of one call's latency, and the rule that says when there are enough.

A run makes all calls of a replay in one go; a sample is one run and what its clock says of it. The runs of a
replay take turns, so that each call finds other bytes in its slots than it writes. A sample never contains a
compilation, a graph launch or the host's pace:

- `cuda_event` puts CUDA events around a long and around a short series of calls; the difference of their
  times over the difference of their calls is the latency of one call, and what a series costs of itself
  cancels. In a CUDA graph events and sweeps are nodes as the calls are, so that a sample is one launch;
  eager calls, with what lies between them, are queued while a spinning kernel holds the stream.
- `cupti` adds up what CUPTI says that each kernel of a replay took, over its calls.
- `wall_clock` divides the host's time for a replay, synchronised at its end, by its calls. On a GPU that
  contains the replay's launch and the synchronisation; it is there to repeat what other tools report.
"""

import secrets
import statistics as stats
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import cycle

import torch

from kvexp.errors import ConfigError, KvexpError, Unsupported
from kvexp.experiment import Scalar
from kvexp.gpu import cupti as activity
from kvexp.gpu.cupti import Activity
from kvexp.op import Call
from kvexp.statistics import median_standard_error

GPU_CLOCKS = ("cuda_event", "cupti")
"""Timers that tell GPU time alone, in either mode."""

FIRST_SPIN_CYCLES = 400_000
PROFILED_CALLS = 10
"""Calls that a profiler is shown; ncu replays each many times."""

LAST_SPIN_CYCLES = 1 << 28
"""Some 0.15 s: the host queues no replay for longer than that."""


@dataclass(frozen=True)
class Rule:
    """When to stop sampling.

    Attributes:
        warmup: Samples taken and thrown away first.
        min_samples: Samples taken whatever the clock says.
        max_samples: Samples at the most.
        relative_error: Stop when the standard error of the median is at most this part of the median.
        max_seconds: Stop when sampling has taken this long and `min_samples` are there.
    """

    warmup: int = 3
    min_samples: int = 20
    max_samples: int = 1000
    relative_error: float = 0.005
    max_seconds: float = 2.0

    @classmethod
    def from_options(cls, options: "dict[str, Scalar]") -> "Rule":
        """The rule that a timer's options describe.

        Raises:
            ConfigError: An option is unknown.
        """
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise ConfigError(f"timer has no {name}; it has {', '.join(sorted(known))}")
        return cls(**options)  # type: ignore[arg-type]  # cli checked the types


@dataclass(frozen=True)
class Replay:
    """Calls that are made in one go, and the clock that times them.

    Attributes:
        runs: Each makes all calls, on the current stream; they are what is verified, and what samples run, in
            turns.
        calls: How many calls a run makes.
        sample: Runs the one of that index once and tells the latency of one call in microseconds.
        host_us: The host's time for an eager call, of each sample so far; empty where there is none.
        sweeps: A run begins with a sweep of the L2, so that it does not matter what came before it.
    """

    runs: Sequence[Call]
    calls: int
    sample: Callable[[int], float]
    host_us: Sequence[float] = ()
    sweeps: bool = False


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


def check_timer(timer: str, device: str) -> None:
    """Returns when the device has the clock.

    Raises:
        Unsupported: A GPU's clock or profilers were asked for on a CPU, or CUPTI where it is missing.
    """
    if timer in (*GPU_CLOCKS, "profile") and not device.startswith("cuda"):
        raise Unsupported(f"timer={timer} needs a GPU; on device={device} use timer=wall_clock")
    if timer == "cupti":
        activity.check()


def profile(calls: Sequence[Call], name: str) -> None:
    """The calls ran one by one while a profiler was told to look, in an NVTX range of that name."""
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    torch.cuda.nvtx.range_push(name)
    for call in calls:
        call()
    torch.cuda.synchronize()
    torch.cuda.nvtx.range_pop()
    torch.cuda.profiler.stop()


def collect(
    sample: Callable[[], float], rule: Rule, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, ...]:
    """Samples until the rule says that there are enough; every one is kept.

    Args:
        sample: Takes one sample.
        rule: When to stop.
        clock: Seconds, for the time limit.
    """
    for _ in range(rule.warmup):
        sample()
    samples: list[float] = []
    begin = clock()
    while len(samples) < rule.max_samples:
        samples.append(sample())
        if len(samples) < rule.min_samples:
            continue
        if clock() - begin >= rule.max_seconds:
            break
        # Sorting each time would cost more than sampling: look at every fifth.
        if len(samples) % 5 == 0 and _settled(samples, rule.relative_error):
            break
    return tuple(samples)


def _settled(samples: Sequence[float], relative_error: float) -> bool:
    return median_standard_error(samples) <= relative_error * stats.median(samples)


def timing(replay: Replay, rule: Rule, audit: Audit | None = None) -> Timing:
    """Take samples of one call's latency, as many as the rule asks for.

    Args:
        replay: The calls.
        rule: When to stop.
        audit: Called after one of the first `min_samples` that count, and after the one behind it: what runs
            that do nothing leave cannot be right for both. It is drawn anew each time, so that no call can
            know which it is. Where the audit could show in the samples behind it, two are thrown away.

    Raises:
        KvexpError: A sample cannot be taken, see the clock; or the audit has found wrong bytes.
    """
    before = len(replay.host_us)
    certain = max(1, min(rule.min_samples, rule.max_samples))
    first = rule.warmup + secrets.randbelow(certain)
    audited = range(first, first + 2)
    # The first run has just been checked, and its rows are in the slots.
    turns = cycle([*range(1, len(replay.runs)), 0])
    taken = last_run = 0

    def take() -> float:
        nonlocal taken, last_run
        taken, last_run = taken + 1, next(turns)
        return replay.sample(last_run)

    def sample() -> float:
        found = take()
        if audit and taken - 1 in audited:
            audit(last_run)
            if not replay.sweeps:
                take()
                audit(last_run)
                take()
        return found

    samples = collect(sample, rule)
    host_us = list(replay.host_us[before:])
    if audit and not replay.sweeps:
        del host_us[first + 1 : first + 3]
    host_us = host_us[rule.warmup :]
    return Timing(samples, stats.median(host_us) if host_us else None, last_run)


def wall_clock(runs: Sequence[Call], calls: int, on_gpu: bool) -> Replay:
    """Put the host's clock around all calls of a run, synchronised at their end.

    Args:
        runs: Each makes the calls.
        calls: How many.
        on_gpu: There is a GPU to wait for.
    """

    def sample(turn: int) -> float:
        run = runs[turn]
        begin = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) * 1e6 / calls

    return Replay(runs, calls, sample)


def cuda_event(
    prepare: Callable[[Sequence[Call]], Call],
    turns: Sequence[Sequence[Call]],
    short_calls: int,
    evict: Call | None,
    eager: bool,
) -> Replay:
    """Put CUDA events around a long series of calls and a short one, on the current stream.

    Args:
        prepare: Makes one call of many; see `mode.prepare`.
        turns: The calls of each run: those of the long series, then those of the short one.
        short_calls: How many those are; fewer than half.
        evict: Runs before each series, outside its events, to drive the cache's slots out of the L2.
        eager: The calls are launched from Python; then the host's time for a call is kept too, and a sample
            raises Unsupported where a call waits for the GPU, so that it cannot be queued.
    """
    # External: as nodes of a graph they are recorded anew by each of its replays.
    events = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(4)]
    begin_long, end_long, begin_short, end_short = events
    sweep = [evict] if evict else []
    stamps: list[float] = []
    stamp = [lambda: stamps.append(time.perf_counter())] if eager else []
    runs = []
    for calls in turns:
        long, short = calls[:-short_calls], calls[-short_calls:]
        timed_long = [begin_long.record, *stamp, *long, *stamp, end_long.record]
        timed_short = [begin_short.record, *short, end_short.record]
        runs.append(prepare([*sweep, *timed_long, *sweep, *timed_short]))
    held = [_Held(run, [other for other in runs if other is not run]) for run in runs] if eager else []
    host_us: list[float] = []

    def sample(turn: int) -> float:
        if held:
            held[turn].run()
            begin, end = stamps[-2:]
            host_us.append((end - begin) * 1e6 / len(long))
            stamps.clear()
        else:
            runs[turn]()
            torch.cuda.synchronize()
        difference_ms = begin_long.elapsed_time(end_long) - begin_short.elapsed_time(end_short)
        return float(difference_ms) * 1e3 / (len(long) - len(short))

    return Replay(runs, len(calls), sample, host_us, sweeps=bool(evict))


def cupti(
    runs: Sequence[Call],
    calls: int,
    evict: Call | None,
    records: Activity,
    wait: Call = torch.cuda.synchronize,
) -> Replay:
    """Add up what CUPTI says that the kernels, copies and fills of the calls took, without what lies between.

    A sample raises KvexpError where not as many kernels were recorded as the calls can have had.

    Args:
        runs: Each makes the calls; a graph was captured while records were kept.
        calls: How many.
        evict: See `cuda_event`; it is not counted.
        records: What the GPU ran.
        wait: Returns when the GPU has run all.
    """

    def sample(turn: int) -> float:
        if evict:
            evict()
        wait()
        records.take()
        runs[turn]()
        wait()
        durations_ns = records.take()
        if not durations_ns or len(durations_ns) % calls:
            raise KvexpError(f"CUPTI has recorded {len(durations_ns)} kernels of {calls} equal calls")
        return sum(durations_ns) / 1e3 / calls

    return Replay(runs, calls, sample)


class _Held:
    """A run that is queued while the GPU spins, for as long as that takes the host.

    Where it was not queued in time, the other runs come before it does again: its calls are to find in their
    slots what those have written.
    """

    def __init__(self, run: Call, others: Sequence[Call]) -> None:
        self._run, self._others, self._spin_cycles = run, others, FIRST_SPIN_CYCLES
        self._free = torch.cuda.Event()

    def run(self) -> None:
        """The run is over, and was queued before the GPU came to it.

        Raises:
            Unsupported: It waits for the GPU, so that it cannot be queued.
        """
        while not self._queued():
            self._spin_cycles *= 2
            if self._spin_cycles > LAST_SPIN_CYCLES:
                raise Unsupported(
                    "the call waits for the GPU, so timer=cuda_event cannot queue it; use timer=wall_clock"
                )
            for other in self._others:
                other()
            torch.cuda.synchronize()

    def _queued(self) -> bool:
        torch.cuda._sleep(self._spin_cycles)
        self._free.record()
        self._run()
        queued = not self._free.query()
        torch.cuda.synchronize()
        return queued
