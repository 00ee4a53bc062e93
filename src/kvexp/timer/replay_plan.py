"""Plan how many calls one replay holds, which slots and rows they use, and what the L2 holds of them."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from kvexp.errors import Unsupported

MOST_GRAPH_CALLS = 2000
"""More nodes cost more in capture than they add in precision."""

MOST_EAGER_CALLS = 16
"""Calls, of up to some fifty kernels each, that fit the launch queue of about 1,000 behind the spin."""

FEWEST_CALLS = 4
"""Calls of both series; long calls may be fewer."""

FEWEST_LONG_CALLS = 2
"""One call alone would leave writes in the L2 that the next call, as in a model, has to wait for."""

GPU_REPLAY_US = 400.0
CPU_REPLAY_US = 200.0
TURNS = 2
"""Runs of a replay that take turns, so that a call finds other bytes in its slots than it writes."""

COLD_FACTOR = 2
"""A slot is cold again when more than this many L2 sizes were read or written since it was touched."""


@dataclass(frozen=True)
class Plan:
    """The replay of one case: a long series of calls and, where its time is subtracted, a short one.

    Attributes:
        calls: Calls of the long series.
        short_calls: Calls of the short series; 0 where there is none.
        mappings: Slot mappings that the calls walk through; no two share a slot.
        cache_state: `cold`, `hot` (every call writes the same slots) or `warm` (the cache is too small for
            either); None on a CPU, whose caches are not controlled.
        flush_l2: The L2 is flushed by reading before each series.
        windows: Sets of keys and values that the calls walk through; at least two.
        inputs_state: `hot` (the sets share all rows but a few) or `cold` (they share none, and are more than
            the L2 holds); None on a CPU.
    """

    calls: int
    short_calls: int
    mappings: int
    cache_state: Literal["cold", "hot", "warm"] | None
    flush_l2: bool
    windows: int = 2
    inputs_state: Literal["cold", "hot"] | None = None

    @property
    def all_calls(self) -> int:
        """Return the calls of both series; the short one continues where the long one ends."""
        return self.calls + self.short_calls

    def without_short_calls(self) -> "Plan":
        """Return the long series alone."""
        mappings = min(self.calls, self.mappings)
        calls = _count_visits(self.calls, mappings, FEWEST_LONG_CALLS) * mappings
        return replace(self, calls=calls, short_calls=0, mappings=mappings)

    def walk(self, turn: int) -> list[tuple[int, int]]:
        """Return the slot mapping and the window of each call of a run.

        Windows follow one another. Where that would give a mapping the same window again, one window is left
        out each time the mappings begin anew. A mapping also changes its window from its last visit in one
        turn to its first in the other: its visits are odd in number and windows even.
        """
        every, size = self.mappings, self.windows
        left_out = 0 if every % size else 1
        return [
            (call % every, (call + call // every * left_out + turn) % size) for call in range(self.all_calls)
        ]

    def last_windows(self, turn: int) -> list[int]:
        """Return for each slot mapping the window whose rows it holds after a run."""
        last = dict(self.walk(turn))
        return [last[mapping] for mapping in range(self.mappings)]


ONCE = Plan(calls=1, short_calls=0, mappings=1, cache_state=None, flush_l2=False)
"""Plan of one call, which is verified and not timed."""


def plan_on_cpu(distinct: int, bytes_moved: int) -> Plan:
    """Plan enough calls for the host's clock to resolve them, at an assumed 10 GB/s and 5 us a call."""
    expected_us = 5.0 + bytes_moved / 10e3
    calls = max(1, min(MOST_EAGER_CALLS, math.ceil(CPU_REPLAY_US / expected_us)))
    mappings = _count_mappings(calls, distinct, 1)
    return Plan(_count_visits(calls, mappings, 1) * mappings, 0, mappings, None, False)


def plan_on_gpu(
    distinct: int,
    bytes_moved: int,
    bytes_written: int,
    l2_bytes: int,
    graph: bool,
    cache: str = "auto",
    inputs: str = "hot",
) -> Plan:
    """Plan series that are long against the clock's resolution and whose calls find the L2 state asked for.

    A flush before each series evicts what the one before it wrote. Inside a series a cold slot occurs once,
    or again only after more than twice the L2 was written; likewise the rows of cold inputs.

    Args:
        distinct: Slot mappings that share no slot; see `op.Op.count_places`.
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
    calls_until_cold = COLD_FACTOR * l2_bytes // bytes_written + 1
    wanted = long_enough if cache == "hot" else max(long_enough, calls_until_cold)
    calls = max(fewest, min(most, wanted))
    state: Literal["cold", "hot", "warm"] = "hot"
    if cache != "hot":
        state = "cold"
        if distinct < min(calls, calls_until_cold):
            if distinct >= fewest:
                calls = distinct
            elif cache == "cold":
                raise Unsupported(
                    f"timer.cache=cold needs slots for {fewest} calls that share none, and the cache "
                    f"has them for {distinct}; take more workload.num_blocks or timer.cache=hot"
                )
            else:
                state = "warm"
    short_calls = max(1, calls // 4)
    # Where slots are cold only on their first visit, there are no more calls than mappings.
    once = state == "cold" and distinct < calls_until_cold
    needed = fewest if once else calls_until_cold if state == "cold" else 1
    mappings = 1 if cache == "hot" else _count_mappings(calls + short_calls, distinct, needed)
    least = mappings if once else fewest + max(1, fewest // 4)
    all_calls = _count_visits(calls + short_calls, mappings, least) * mappings
    short_calls = max(1, all_calls // 5)
    calls = all_calls - short_calls
    windows = 2
    if inputs == "cold":
        # One more than the L2 needs: a walk may leave one out.
        of_rows = COLD_FACTOR * l2_bytes // max(1, bytes_moved - bytes_written) + 2
        windows = max(2, min(calls, of_rows))
        windows += windows % 2
    return Plan(
        calls=calls,
        short_calls=short_calls,
        mappings=mappings,
        cache_state=state,
        flush_l2=state == "cold" or inputs == "cold",
        windows=windows,
        inputs_state="cold" if inputs == "cold" else "hot",
    )


def _count_visits(calls: int, mappings: int, fewest: int) -> int:
    """Return how often each mapping is visited, an odd number: for `calls` calls, or `fewest` if more."""
    visits = max(1, calls // mappings)
    visits -= 1 - visits % 2
    while visits * mappings < fewest:
        visits += 2
    return visits


def _count_mappings(calls: int, distinct: int, fewest: int) -> int:
    """Return how many slot mappings so many calls walk through: at least `fewest`, if possible.

    One is left out where all would be used: where every slot is written, the next call hides what a call
    writes past its own slots, and nothing shows what the last call does.
    """
    spare = distinct - 1
    return min(calls, spare if spare >= fewest else distinct)
