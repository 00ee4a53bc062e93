"""Time a replay with the host's clock (timer=wall_clock).

On a GPU that contains the replay's launch and the synchronisation: it repeats what other tools report.
"""

import time
from collections.abc import Sequence

import torch

from kvexp.op import Call
from kvexp.timer.replay import Replay


def make_replay(runs: Sequence[Call], calls: int, on_gpu: bool) -> Replay:
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
