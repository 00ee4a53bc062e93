"""Time a replay with CUDA events around a long and a short series of calls (timer=cuda_event).

The difference of their times over the difference of their calls is the latency of one call: what a series
costs of itself cancels. In a CUDA graph, events and flushes are nodes as the calls are, so that a sample is
one launch. Eager calls, with what lies between them, are queued while a spinning kernel holds the stream.
"""

import time
from collections.abc import Sequence

import torch

from kvexp.errors import Unsupported
from kvexp.op import Call
from kvexp.timer import Timer
from kvexp.timer.replay import Prepare, Replay, Turns
from kvexp.timer.replay_plan import Plan

FIRST_SPIN_CYCLES = 400_000

LAST_SPIN_CYCLES = 1 << 28
"""Some 0.15 s: the host queues no replay for longer than that."""


class CudaEvent(Timer):
    """Put CUDA events around a long series of calls and a short one."""

    name = "cuda_event"
    needs_gpu = True
    has_gpu_clock = True

    def make_replay(self, prepare: Prepare, turns: Turns, plan: Plan, flush_l2: Call | None) -> Replay:
        """See `Timer`; each series begins with a flush, outside its events.

        Of eager calls the host's time is kept too, and a sample raises Unsupported where a call waits for the
        GPU, so that it cannot be queued.
        """
        # External: as nodes of a graph they are recorded anew by each of its replays.
        events = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(4)]
        begin_long, end_long, begin_short, end_short = events
        flush, eager = [flush_l2] if flush_l2 else [], self.mode == "no_graph"
        stamps: list[float] = []
        stamp = [lambda: stamps.append(time.perf_counter())] if eager else []
        runs = []
        for calls in turns:
            long, short = calls[: -plan.short_calls], calls[-plan.short_calls :]
            timed_long = [begin_long.record, *stamp, *long, *stamp, end_long.record]
            timed_short = [begin_short.record, *short, end_short.record]
            runs.append(prepare([*flush, *timed_long, *flush, *timed_short]))
        others = [[other for other in runs if other is not run] for run in runs]
        queued = list(map(_QueuedRun, runs, others)) if eager else []
        host_us: list[float] = []

        def sample(turn: int) -> float:
            if queued:
                queued[turn].run()
                begin, end = stamps[-2:]
                host_us.append((end - begin) * 1e6 / len(long))
                stamps.clear()
            else:
                runs[turn]()
                torch.cuda.synchronize()
            difference_ms = begin_long.elapsed_time(end_long) - begin_short.elapsed_time(end_short)
            return float(difference_ms) * 1e3 / (len(long) - len(short))

        return Replay(runs, len(calls), sample, host_us, flushes_l2=bool(flush_l2))


class _QueuedRun:
    """A run that is queued while the GPU spins, for as long as queueing takes the host.

    Where the spin was too short, the other runs are made before the next try: the run's calls are to find in
    their slots what those have written.
    """

    def __init__(self, run: Call, others: Sequence[Call]) -> None:
        self._run, self._others, self._spin_cycles = run, others, FIRST_SPIN_CYCLES
        self._spin_end = torch.cuda.Event()

    def run(self) -> None:
        """Make the run, queued before the GPU comes to it, and wait for its end.

        Raises:
            Unsupported: It waits for the GPU, so that it cannot be queued.
        """
        while not self._queue():
            self._spin_cycles *= 2
            if self._spin_cycles > LAST_SPIN_CYCLES:
                raise Unsupported(
                    "the call waits for the GPU, so timer=cuda_event cannot queue it; use timer=wall_clock"
                )
            for other in self._others:
                other()
            torch.cuda.synchronize()

    def _queue(self) -> bool:
        """Make the run behind a spin; return whether all of it was queued before the spin ended."""
        torch.cuda._sleep(self._spin_cycles)
        self._spin_end.record()
        self._run()
        queued = not self._spin_end.query()
        torch.cuda.synchronize()
        return queued
