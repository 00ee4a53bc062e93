"""Record kernel, copy and fill times with CUPTI's Activity API; its Python package is optional."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kvexp.errors import KvexpError, Unsupported

KINDS = ("CONCURRENT_KERNEL", "MEMCPY", "MEMCPY2", "MEMSET")
"""All activities that a call may consist of, in a graph or not."""
BUFFER_BYTES = 8 << 20
"""About ten thousand records; CUPTI requests another buffer when one is full."""
FLUSH_FORCED = 1
"""CUPTI_ACTIVITY_FLAG_FLUSH_FORCED: flush buffers that are not full, too."""

_durations_ns: list[int] = []


@contextmanager
def record() -> Iterator[Callable[[], list[int]]]:
    """Record the GPU's activity inside the block; capture graphs inside, or CUPTI does not know them.

    Yields:
        Takes the nanoseconds of each kernel, copy and fill since it was last called, all of which must have
        ended. It raises KvexpError where CUPTI does not report a duration for one.

    Raises:
        Unsupported: CUPTI is missing or returns an error, for example because a profiler is running.
    """
    cupti = load_cupti()

    def take() -> list[int]:
        cupti.activity_flush_all(FLUSH_FORCED)
        durations = _durations_ns.copy()
        _durations_ns.clear()
        if any(duration <= 0 for duration in durations):
            raise KvexpError("CUPTI recorded kernels without their durations")
        return durations

    with ExitStack() as stack:
        for name in KINDS:
            kind = getattr(cupti.ActivityKind, name)
            with _translate_errors(cupti):
                cupti.activity_enable(kind)
            stack.callback(cupti.activity_disable, kind)
        yield take


@functools.cache
def load_cupti() -> Any:
    """Return the module `cupti.cupti`; register the callbacks once a process.

    Raises:
        Unsupported: It is missing, or CUPTI returns an error.
    """
    try:
        from cupti import cupti
    except (ImportError, OSError) as error:
        raise Unsupported(
            f"timer=cupti needs the package cupti-python, which cannot be imported ({error}); "
            "pip install 'kvexp[cupti]' brings it"
        ) from error
    with _translate_errors(cupti):
        # A buffer's limit of records, 0, means as many as fit.
        cupti.activity_register_callbacks(lambda: (BUFFER_BYTES, 0), _collect_records)
    return cupti


@contextmanager
def _translate_errors(cupti: Any) -> Iterator[None]:
    """Raise CUPTI's errors, a missing driver or library included, as Unsupported."""
    try:
        yield
    except (cupti.cuptiError, RuntimeError) as error:
        raise Unsupported(f"timer=cupti cannot record, since CUPTI refuses: {error}") from error


def _collect_records(records: list[Any]) -> None:
    """Append the duration of each record."""
    _durations_ns.extend(record.end - record.start for record in records)
