"""Time a replay by the kernel durations that CUPTI records (timer=cupti)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from kvexp.errors import KvexpError
from kvexp.gpu import cupti
from kvexp.op import Call
from kvexp.timer import Timer
from kvexp.timer.replay import Prepare, Replay, Turns
from kvexp.timer.replay_plan import Plan


class Cupti(Timer):
    """Add up the durations of the calls' kernels, copies and fills, without the gaps between them."""

    name = "cupti"
    needs_gpu = True
    has_gpu_clock = True
    _take: Callable[[], list[int]]

    def check(self) -> None:
        """See `Timer`; CUPTI's package must be there, too."""
        super().check()
        cupti.load_cupti()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Record what the GPU runs: graphs must be captured meanwhile."""
        with cupti.record() as self._take:
            yield

    def plan(self, places: int, read: int, written: int, l2_bytes: int | None) -> Plan:
        """See `Timer`; each kernel is timed, so no short series has to be subtracted."""
        return super().plan(places, read, written, l2_bytes).without_short_calls()

    def make_replay(self, prepare: Prepare, turns: Turns, plan: Plan, flush_l2: Call | None) -> Replay:
        """See `Timer`; the flush runs before each sample and is not counted.

        A sample raises KvexpError where the number of recorded kernels is no multiple of the number of calls.
        """
        runs = [prepare(calls) for calls in turns]
        calls, take, wait = plan.calls, self._take, torch.cuda.synchronize

        def sample(turn: int) -> float:
            if flush_l2:
                flush_l2()
            wait()
            take()
            runs[turn]()
            wait()
            durations_ns = take()
            if not durations_ns or len(durations_ns) % calls:
                raise KvexpError(f"CUPTI has recorded {len(durations_ns)} kernels of {calls} equal calls")
            return sum(durations_ns) / 1e3 / calls

        return Replay(runs, calls, sample)
