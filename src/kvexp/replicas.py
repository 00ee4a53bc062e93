"""How many calls one replay holds, and whether the cache's slots are cold in it."""

import math
from dataclasses import dataclass
from typing import Literal

MOST_GRAPH_CALLS = 2000
"""More nodes cost more in capture than they tell."""

MOST_EAGER_CALLS = 16
"""Calls, of up to some fifty kernels each, that fit the launch queue of about 1,000 behind the spin."""

FEWEST_CALLS = 4
GPU_REPLAY_US = 400.0
CPU_REPLAY_US = 200.0
COLD_FACTOR = 2
"""A slot is cold again when more than this many L2 sizes were read or written since it was touched."""


@dataclass(frozen=True)
class Plan:
    """The replays of one case.

    Attributes:
        calls: Calls of the long replay.
        short_calls: Calls of the short replay, whose time is subtracted; 0 where none is needed.
        mappings: Slot mappings that the calls walk through, none sharing a slot with another.
        cache_state: `cold` or `warm`; None on a CPU, whose caches are not watched.
        evict: The L2 is swept by reading before each replay.
    """

    calls: int
    short_calls: int
    mappings: int
    cache_state: Literal["cold", "warm"] | None
    evict: bool


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
    return Plan(calls, 0, min(calls, distinct), None, False)


def gpu_plan(distinct: int, bytes_moved: int, bytes_written: int, l2_bytes: int, graph: bool) -> Plan:
    """A replay long against the clock's resolution, whose calls write slots that are not in the L2.

    A read sweep before each replay evicts what the replay before it wrote; inside a replay a slot occurs
    once, or again only after more than twice the L2 was written.

    Args:
        distinct: Slot mappings that share no slot; see `Case.mappings`.
        bytes_moved: Bytes that one call reads and writes.
        bytes_written: Bytes of the slots that one call writes.
        l2_bytes: Size of the GPU's L2.
        graph: The calls are captured in a CUDA graph.
    """
    most = MOST_GRAPH_CALLS if graph else MOST_EAGER_CALLS
    expected_us = 1.0 + bytes_moved / 3e6
    long_enough = math.ceil(GPU_REPLAY_US / expected_us)
    to_be_cold = COLD_FACTOR * l2_bytes // bytes_written + 1
    calls = max(FEWEST_CALLS, min(most, max(long_enough, to_be_cold)))
    mappings = min(calls, distinct)
    if mappings < calls and distinct < to_be_cold:
        if distinct < FEWEST_CALLS:
            return Plan(calls, calls // 4, mappings, "warm", evict=False)
        calls = mappings
    return Plan(calls, calls // 4, mappings, "cold", evict=True)
