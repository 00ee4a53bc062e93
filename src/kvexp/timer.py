"""Whose clock: samples of one call's latency, and the rule that says when there are enough.

A sample never contains a compilation, a graph launch or the host's pace:

- `cuda_event` times a long and a short replay with CUDA events while a spinning kernel holds the stream
  until both are queued; their difference over the difference of their calls is the latency of one call, and
  what a replay costs of itself cancels.
- `cupti` adds up what CUPTI says that each kernel of a replay took, over its calls.
- `wall_clock` divides the host's time for a replay, synchronised at its end, by its calls. On a GPU that
  contains the replay's launch and the synchronisation; it is there to repeat what other tools report.
"""

import statistics as stats
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch

from kvexp import activity
from kvexp.activity import Activity
from kvexp.errors import ConfigError, KvexpError, Unsupported
from kvexp.estimate import median_standard_error
from kvexp.experiment import Scalar
from kvexp.op import Call

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
    """Something that can be run and holds a known number of calls."""

    run: Call
    calls: int


@dataclass(frozen=True)
class Timing:
    """Samples of one call's latency in microseconds; `host_us`: the host's median time for an eager call."""

    samples_us: tuple[float, ...]
    host_us: float | None = None


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


def wall_clock(replay: Replay, rule: Rule, on_gpu: bool) -> Timing:
    """The host's clock around a whole replay, synchronised at its end."""

    def sample() -> float:
        begin = time.perf_counter()
        replay.run()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) * 1e6 / replay.calls

    return Timing(collect(sample, rule))


def cuda_event(long: Replay, short: Replay, evict: Call | None, rule: Rule, eager: bool) -> Timing:
    """CUDA events around a long and a short replay, on the current stream.

    Args:
        long: The replay with more calls.
        short: The replay with fewer calls.
        evict: Runs before each replay, outside the events, to drive the cache's slots out of the L2.
        rule: When to stop.
        eager: The replays launch from Python; then the host's time for a call is kept too.

    Raises:
        Unsupported: The call waits for the GPU, so that it cannot be queued behind the spinning kernel.
    """
    stopwatch = _Stopwatch(long, short, evict)
    samples = collect(stopwatch.sample, rule)
    host = stats.median(stopwatch.host_us[rule.warmup :]) if eager else None
    return Timing(samples, host)


def cupti(
    replay: Replay, evict: Call | None, rule: Rule, records: Activity, wait: Call = torch.cuda.synchronize
) -> Timing:
    """What CUPTI says that the kernels, copies and fills of a replay took, without what lies between them.

    Args:
        replay: The calls; a graph was captured while records were kept.
        evict: See `cuda_event`; it is not counted.
        rule: When to stop.
        records: What the GPU ran.
        wait: Returns when the GPU has run all.

    Raises:
        KvexpError: Not as many kernels were recorded as the calls can have had.
    """

    def sample() -> float:
        if evict:
            evict()
        wait()
        records.taken()
        replay.run()
        wait()
        durations_ns = records.taken()
        if not durations_ns or len(durations_ns) % replay.calls:
            raise KvexpError(f"CUPTI has recorded {len(durations_ns)} kernels of {replay.calls} equal calls")
        return sum(durations_ns) / 1e3 / replay.calls

    return Timing(collect(sample, rule))


class _Stopwatch:
    """Events and the length of the spin, which grows until everything is queued while it lasts."""

    def __init__(self, long: Replay, short: Replay, evict: Call | None) -> None:
        self.long, self.short, self.evict = long, short, evict
        self.spin_cycles = FIRST_SPIN_CYCLES
        self.host_us: list[float] = []
        self._held, *self._marks = (torch.cuda.Event(enable_timing=True) for _ in range(5))

    def sample(self) -> float:
        """Latency of one call in microseconds."""
        while not self._queue():
            self.spin_cycles *= 2
            if self.spin_cycles > LAST_SPIN_CYCLES:
                raise Unsupported(
                    "the call waits for the GPU, so timer=cuda_event cannot queue it; use timer=wall_clock"
                )
        begin_long, end_long, begin_short, end_short = self._marks
        long_ms = begin_long.elapsed_time(end_long)
        short_ms = begin_short.elapsed_time(end_short)
        return float(long_ms - short_ms) * 1e3 / (self.long.calls - self.short.calls)

    def _queue(self) -> bool:
        """Both replays have run; true when they were queued before the GPU came to them."""
        begin_long, end_long, begin_short, end_short = self._marks
        torch.cuda._sleep(self.spin_cycles)
        self._held.record()
        if self.evict:
            self.evict()
        begin_long.record()
        begin = time.perf_counter()
        self.long.run()
        host_us = (time.perf_counter() - begin) * 1e6 / self.long.calls
        end_long.record()
        if self.evict:
            self.evict()
        begin_short.record()
        self.short.run()
        end_short.record()
        queued = not self._held.query()
        torch.cuda.synchronize()
        if queued:
            self.host_us.append(host_us)
        return queued
