"""Time a replay with the host's clock (timer=wall_clock).

On a GPU that contains the replay's launch and the synchronisation: it repeats what other tools report.
"""

import time

import torch

from kvexp.op import Call
from kvexp.timer import Timer
from kvexp.timer.replay import Prepare, Replay, Turns
from kvexp.timer.replay_plan import Plan


class WallClock(Timer):
    """Put the host's clock around each run, synchronised at its end where there is a GPU."""

    name = "wall_clock"

    def make_replay(self, prepare: Prepare, turns: Turns, plan: Plan, flush_l2: Call | None) -> Replay:
        """See `Timer`; nothing is flushed."""
        runs = [prepare(calls) for calls in turns]
        calls, on_gpu = plan.calls, self.device != "cpu"

        def sample(turn: int) -> float:
            run = runs[turn]
            begin = time.perf_counter()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            return (time.perf_counter() - begin) * 1e6 / calls

        return Replay(runs, calls, sample)
