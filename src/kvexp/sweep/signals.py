"""Have SIGTERM and SIGHUP end a sweep as Ctrl-C does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from kvexp.errors import Terminated

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the sweep as Ctrl-C does: no process is left, and the store is told.

    A signal that is ignored stays ignored, as `nohup` wants.

    Raises:
        Terminated: One of them came.
    """

    def terminate(number: int, _: object) -> None:
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the end of the block, where the one that came is raised.

    A process that is started inside inherits that: it has to call `release_signals`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        release_signals()


def release_signals() -> None:
    """Have signals that were held back arrive."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
