"""Time a replay with the host's clock (timer=wall_clock).

On a GPU that contains the replay's launch and the synchronisation: it repeats what other tools report.
"""

import time
from collections.abc import Sequence

import torch

from kvexp.op import Call
from kvexp.timer.replay import Replay


def make_replay(runs: Sequence[Call], calls: int, on_gpu: bool) -> Replay:
    """Put the host's clock around each run of so many calls, synchronised at its end where there is a GPU."""

    def sample(turn: int) -> float:
        run = runs[turn]
        begin = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) * 1e6 / calls

    return Replay(runs, calls, sample)
