"""How many calls one replay holds, and whether the cache's slots are cold in it."""

import math
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Literal

from kvexp.errors import Unsupported

MOST_GRAPH_CALLS = 2000
"""More nodes cost more in capture than they tell."""

MOST_EAGER_CALLS = 16
"""Calls, of up to some fifty kernels each, that fit the launch queue of about 1,000 behind the spin."""

FEWEST_CALLS = 4
"""Calls of a graph's long series; of calls that are long themselves there are fewer."""

FEWEST_LONG_CALLS = 2
"""One call alone would leave in the L2 what the next one, as in a model, has to wait for."""

GPU_REPLAY_US = 400.0
CPU_REPLAY_US = 200.0
COLD_FACTOR = 2
"""A slot is cold again when more than this many L2 sizes were read or written since it was touched."""


@dataclass(frozen=True)
class Plan:
    """The replay of one case: a long series of calls and, where its time is to be subtracted, a short one.

    Attributes:
        calls: Calls of the long series.
        short_calls: Calls of the short series; 0 where there is none.
        mappings: Slot mappings that the calls walk through, none sharing a slot with another.
        cache_state: `cold`, `hot` (every call writes the same slots) or `warm` (the cache is too small for
            either); None on a CPU, whose caches are not watched.
        evict: The L2 is swept by reading before each series.
        windows: Different keys and values that the calls walk through.
        inputs_state: `hot` (every call reads the same rows) or `cold`; None on a CPU.
    """

    calls: int
    short_calls: int
    mappings: int
    cache_state: Literal["cold", "hot", "warm"] | None
    evict: bool
    windows: int = 1
    inputs_state: Literal["cold", "hot"] | None = None

    @property
    def all_calls(self) -> int:
        """Calls of both series; the short one goes on where the long one ends."""
        return self.calls + self.short_calls

    def without_short_calls(self) -> "Plan":
        """The long series alone."""
        return replace(self, short_calls=0, mappings=min(self.calls, self.mappings))

    def walk(self) -> list[tuple[int, int]]:
        """Slot mapping and window of each different call; after the last one the first comes again."""
        different = min(self.all_calls, math.lcm(self.mappings, self.windows))
        return [(call % self.mappings, call % self.windows) for call in range(different)]

    def last_windows(self) -> list[int]:
        """For each slot mapping, the window whose rows it holds in the end."""
        last = dict(islice(cycle(self.walk()), self.all_calls))
        return [last[mapping] for mapping in range(len(last))]


ONCE = Plan(calls=1, short_calls=0, mappings=1, cache_state=None, evict=False)
"""One call: what is verified and not timed."""


def cpu_plan(distinct: int, bytes_moved: int) -> Plan:
    """Calls enough that the host's clock resolves them, at an assumed 10 GB/s and 5 us a call.

    Args:
        distinct: Slot mappings that share no slot; see `Case.mappings`.
        bytes_moved: Bytes that one call reads and writes.
    """
    expected_us = 5.0 + bytes_moved / 10e3
    calls = max(1, min(MOST_EAGER_CALLS, math.ceil(CPU_REPLAY_US / expected_us)))
    return Plan(calls, 0, _mappings(calls, distinct, 1), None, False)


def gpu_plan(
    distinct: int,
    bytes_moved: int,
    bytes_written: int,
    l2_bytes: int,
    graph: bool,
    cache: str = "auto",
    inputs: str = "hot",
) -> Plan:
    """Series long against the clock's resolution, whose calls find the L2 as they are to find it.

    A read sweep before each series evicts what the one before it wrote; inside a series a slot occurs once,
    or again only after more than twice the L2 was written, and the rows of cold inputs alike.

    Args:
        distinct: Slot mappings that share no slot; see `Case.mappings`.
        bytes_moved: Bytes that one call reads and writes.
        bytes_written: Bytes of the slots that one call writes.
        l2_bytes: Size of the GPU's L2.
        graph: The calls are captured in a CUDA graph.
        cache: `cold`, `hot`, or `auto`: cold where the cache has the slots for it.
        inputs: `hot` or `cold`.

    Raises:
        Unsupported: Cold slots were asked for and the cache has too few.
    """
    most = MOST_GRAPH_CALLS if graph else MOST_EAGER_CALLS
    expected_us = 1.0 + bytes_moved / 3e6
    long_enough = math.ceil(GPU_REPLAY_US / expected_us)
    fewest = max(FEWEST_LONG_CALLS, min(FEWEST_CALLS, long_enough))
    to_be_cold = COLD_FACTOR * l2_bytes // bytes_written + 1
    wanted = long_enough if cache == "hot" else max(long_enough, to_be_cold)
    calls = max(fewest, min(most, wanted))
    state: Literal["cold", "hot", "warm"] = "hot"
    if cache != "hot":
        state = "cold"
        if distinct < min(calls, to_be_cold):
            if distinct >= fewest:
                calls = distinct
            elif cache == "cold":
                raise Unsupported(
                    f"timer.cache=cold needs slots for {fewest} calls that share none, and the cache "
                    f"has them for {distinct}; take more workload.num_blocks or timer.cache=hot"
                )
            else:
                state = "warm"
    windows = 1
    if inputs == "cold":
        windows = min(calls, COLD_FACTOR * l2_bytes // max(1, bytes_moved - bytes_written) + 1)
    short_calls = max(1, calls // 4)
    return Plan(
        calls=calls,
        short_calls=short_calls,
        mappings=1 if cache == "hot" else _mappings(calls + short_calls, distinct, calls),
        cache_state=state,
        evict=state == "cold" or inputs == "cold",
        windows=windows,
        inputs_state="cold" if inputs == "cold" else "hot",
    )


def _mappings(calls: int, distinct: int, fewest: int) -> int:
    """Slot mappings for so many calls, of those that share no slot; `fewest` of them, if there are as many.

    Where all would be used, each by one call, the next one could hide what a call writes past its slots, each
    time: then one is left out.
    """
    spare = distinct - 1
    return min(calls, spare if spare >= fewest else distinct)
