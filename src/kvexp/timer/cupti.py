"""Time a replay by the kernel durations that CUPTI records (timer=cupti)."""

from collections.abc import Sequence

import torch

from kvexp.errors import KvexpError
from kvexp.gpu.cupti import Activity
from kvexp.op import Call
from kvexp.timer.replay import Replay


def make_replay(
    runs: Sequence[Call],
    calls: int,
    flush_l2: Call | None,
    records: Activity,
    wait: Call = torch.cuda.synchronize,
) -> Replay:
    """Add up the durations of the calls' kernels, copies and fills, without the gaps between them.

    A sample raises KvexpError where the number of recorded kernels is no multiple of the number of calls.

    Graphs must be captured while `records` are kept. `flush_l2` runs before each sample and is not counted.
    `wait` returns when the GPU has run all.
    """

    def sample(turn: int) -> float:
        if flush_l2:
            flush_l2()
        wait()
        records.take()
        runs[turn]()
        wait()
        durations_ns = records.take()
        if not durations_ns or len(durations_ns) % calls:
            raise KvexpError(f"CUPTI has recorded {len(durations_ns)} kernels of {calls} equal calls")
        return sum(durations_ns) / 1e3 / calls

    return Replay(runs, calls, sample)
