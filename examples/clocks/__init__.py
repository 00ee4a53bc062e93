"""Let other tools' clocks time kvexp's verified calls, as timers of their own; see docs/measuring.md.

Each times one call, again and again, as its users do: the same slots, the same keys and values. A sample is
one measurement of the tool, with the tool's own repetitions.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from kvexp.errors import Unsupported
from kvexp.op import Call
from kvexp.timer import Timer
from kvexp.timer.replay import Prepare, Replay, Turns
from kvexp.timer.replay_plan import ONCE, Plan


class OtherClock(Timer):
    """A function of another tool that times a call.

    Attributes:
        states: What the L2 can hold of slots and inputs before a call: all or nothing.
    """

    needs_gpu = True
    states: ClassVar[tuple[str, ...]] = ("cold",)

    def load(self) -> Callable[[Call], float]:
        """Import the tool; return what tells a call's microseconds, or raise ImportError."""
        raise NotImplementedError

    def check(self) -> None:
        """See `Timer`; the tool must be installed, and captures graphs itself if it uses any."""
        super().check()
        if self.mode != "no_graph":
            raise Unsupported(
                f"timer={self.name} takes calls that are launched one by one; use mode=no_graph"
            )
        try:
            self.load()
        except ImportError as error:
            raise Unsupported(f"timer={self.name} cannot be imported: {error}") from error

    def plan(self, places: int, read: int, written: int, l2_bytes: int | None) -> Plan:
        """See `Timer`: one call, whose slots and inputs are cold or hot as the tool has it."""
        if self.cache != self.inputs or self.cache not in self.states:
            raise Unsupported(
                f"timer={self.name} has slots and inputs {' or '.join(self.states)} alike, "
                f"not timer.cache={self.cache} timer.inputs={self.inputs}"
            )
        state: Any = self.cache
        return replace(ONCE, cache_state=state, inputs_state=state)

    def make_replay(self, prepare: Prepare, turns: Turns, plan: Plan, flush_l2: Call | None) -> Replay:
        """See `Timer`; the tool flushes the L2 itself, if at all."""
        runs, time_us = [prepare(calls) for calls in turns], self.load()
        return Replay(runs, plan.calls, lambda turn: time_us(runs[turn]))


class DoBench(OtherClock):
    """Triton's `do_bench`: events around each call, after 256 MB were set to zero."""

    name = "do_bench"

    def load(self) -> Callable[[Call], float]:
        """See `OtherClock`."""
        from triton.testing import do_bench

        return lambda run: float(do_bench(run, warmup=5, rep=20, return_mode="median")) * 1e3


class DoBenchCudaGraph(OtherClock):
    """Triton's `do_bench_cudagraph`: events around a graph of many calls; nothing is flushed."""

    name = "do_bench_cudagraph"
    states = ("hot",)

    def load(self) -> Callable[[Call], float]:
        """See `OtherClock`."""
        from triton.testing import do_bench_cudagraph

        return lambda run: float(do_bench_cudagraph(run, return_mode="median")) * 1e3


class FlashInferCupti(OtherClock):
    """FlashInfer's `bench_gpu_time_with_cupti`: CUPTI's times of the kernels of each call."""

    name = "flashinfer_cupti"
    states = ("cold", "hot")

    def load(self) -> Callable[[Call], float]:
        """See `OtherClock`."""
        from statistics import median

        import cupti  # without it FlashInfer would fall back to events
        from flashinfer.testing import bench_gpu_time_with_cupti

        del cupti
        repetitions = {"dry_run_iters": 5, "repeat_iters": 20, "cold_l2_cache": self.cache == "cold"}
        return lambda run: float(median(bench_gpu_time_with_cupti(run, **repetitions))) * 1e3
