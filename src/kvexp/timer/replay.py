"""Define a replay: the calls that one sample makes in one go, and the clock that times them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvexp.op import Call

Prepare = Callable[[Sequence[Call]], Call]
"""Makes one call of many, on the current stream; see `mode.prepare`."""

Turns = Sequence[Sequence[Call]]
"""The calls of each run, as many as planned: those of the long series, then those of the short one."""


@dataclass(frozen=True)
class Replay:
    """Calls that are made in one go, and the clock that times them.

    The runs take turns, so that each call finds other bytes in its slots than it writes. A sample is one run.
    It contains no compilation and, on a GPU's clock, neither a graph launch nor the host's pace.

    Attributes:
        runs: Each makes all calls, on the current stream. They are what is verified and what is sampled.
        calls: How many calls a run makes.
        sample: Makes the run of that index once and returns the latency of one call in microseconds.
        host_us: The host's time for an eager call, of each sample so far; empty where there is none.
        flushes_l2: A run begins with a flush of the L2, so that it does not matter what came before it.
    """

    runs: Sequence[Call]
    calls: int
    sample: Callable[[int], float]
    host_us: Sequence[float] = ()
    flushes_l2: bool = False
