"""Have SIGTERM and SIGHUP end a sweep as Ctrl-C does, and Ctrl-C come where it cannot be lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

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


class DeferredInterrupt:
    """Have the first Ctrl-C of a block wait for `check`, and raise a second one at once.

    For code that is not ours: an exception at any of its lines may leave it in a state from which another
    error comes, or be dropped. A Ctrl-C that is ignored stays ignored.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> Self:
        """Begin to wait."""
        # Python lets the main thread alone set handlers.
        is_main = threading.current_thread() is threading.main_thread()
        self._waits = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._waits:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait no longer.

        Raises:
            KeyboardInterrupt: Ctrl-C came, and the block raises nothing else.
        """
        if self._waits:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C came."""
        came, self._came = self._came, False
        if came:
            raise KeyboardInterrupt

    @contextmanager
    def lift(self) -> Iterator[None]:
        """Have Ctrl-C raised at once in the block, as without `DeferredInterrupt`."""
        if self._waits:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            if self._waits:
                signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: object) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
