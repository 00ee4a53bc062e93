"""Run calls for a profiler (timer=profile); nothing is timed."""

from collections.abc import Sequence
from itertools import cycle, islice

import torch

from kvexp.op import Call
from kvexp.timer import Timer

PROFILED_CALLS = 10
"""Calls that are run for a profiler; ncu replays each many times."""


class Profile(Timer):
    """Run each verified call of a point for a profiler."""

    name = "profile"
    untimed = "timer=profile: run for a profiler, not timed"
    needs_gpu = True
    runs_copy = False

    def run_untimed(self, calls: Sequence[Call], title: str) -> None:
        """Run the calls one by one between cudaProfilerStart and Stop, in an NVTX range of that title."""
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        torch.cuda.nvtx.range_push(title)
        for call in islice(cycle(calls), PROFILED_CALLS):
            call()
        torch.cuda.synchronize()
        torch.cuda.nvtx.range_pop()
        torch.cuda.profiler.stop()
