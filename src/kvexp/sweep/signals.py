"""Have SIGTERM and SIGHUP end a sweep as Ctrl-C does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from kvexp.errors import Terminated


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
