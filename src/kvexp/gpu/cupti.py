"""What a GPU ran and for how long, as CUPTI's Activity API records it; its Python package is optional."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kvexp.errors import KvexpError, Unsupported

KINDS = ("CONCURRENT_KERNEL", "MEMCPY", "MEMCPY2", "MEMSET")
"""Whatever a call may be made of, in a graph or not."""
BUFFER_BYTES = 8 << 20
"""Some ten thousand records; CUPTI asks for another buffer when one is full."""
FORCED = 1
"""CUPTI_ACTIVITY_FLAG_FLUSH_FORCED: buffers that are not full are handed over as well."""

_durations_ns: list[int] = []


class Activity:
    """What was recorded since it was last taken.

    Args:
        cupti: The module `cupti.cupti`.
    """

    def __init__(self, cupti: Any) -> None:
        self._cupti = cupti

    def taken(self) -> list[int]:
        """The nanoseconds that each kernel, copy and fill took; what it ran for must have ended.

        Raises:
            KvexpError: CUPTI does not know of one how long it took.
        """
        self._cupti.activity_flush_all(FORCED)
        found = _durations_ns.copy()
        _durations_ns.clear()
        if any(duration <= 0 for duration in found):
            raise KvexpError("CUPTI has recorded kernels without the time that they took")
        return found


def check() -> None:
    """Returns when CUPTI can be used.

    Raises:
        Unsupported: Its package is missing, or it refuses.
    """
    _cupti()


@contextmanager
def recording() -> Iterator[Activity]:
    """The GPU's activity is recorded meanwhile; graphs are to be captured inside, so that CUPTI knows them.

    Raises:
        Unsupported: CUPTI is missing or refuses, for example since a profiler is at work.
    """
    cupti = _cupti()
    with ExitStack() as stack:
        for name in KINDS:
            kind = getattr(cupti.ActivityKind, name)
            with _refusals(cupti):
                cupti.activity_enable(kind)
            stack.callback(cupti.activity_disable, kind)
        yield Activity(cupti)


@functools.cache
def _cupti() -> Any:
    """The module, told once a process where records go."""
    try:
        from cupti import cupti
    except (ImportError, OSError) as error:
        raise Unsupported(
            f"timer=cupti needs the package cupti-python, which cannot be imported ({error}); "
            "pip install 'kvexp[cupti]' brings it"
        ) from error
    with _refusals(cupti):
        cupti.activity_register_callbacks(_requested, _completed)
    return cupti


@contextmanager
def _refusals(cupti: Any) -> Iterator[None]:
    """What CUPTI raises, a missing driver or library included, is said in a sentence."""
    try:
        yield
    except (cupti.cuptiError, RuntimeError) as error:
        raise Unsupported(f"timer=cupti cannot record, since CUPTI refuses: {error}") from error


def _requested() -> tuple[int, int]:
    """Bytes of a buffer, and the most records in it; 0 is as many as fit."""
    return BUFFER_BYTES, 0


def _completed(records: list[Any]) -> None:
    _durations_ns.extend(record.end - record.start for record in records)
