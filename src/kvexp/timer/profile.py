"""Run calls for a profiler (timer=profile); nothing is timed."""

from collections.abc import Sequence

import torch

from kvexp.op import Call

PROFILED_CALLS = 10
"""Calls that are run for a profiler; ncu replays each many times."""


def run_for_profiler(calls: Sequence[Call], name: str) -> None:
    """Run the calls one by one between cudaProfilerStart and Stop, in an NVTX range of that name."""
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    torch.cuda.nvtx.range_push(name)
    for call in calls:
        call()
    torch.cuda.synchronize()
    torch.cuda.nvtx.range_pop()
    torch.cuda.profiler.stop()
