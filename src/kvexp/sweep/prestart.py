"""The processes of a sweep that take seconds to start, begun before it is composed what they are to do."""

from collections.abc import Sequence
from typing import Self

from kvexp.sweep.subprocess_worker import Started
from kvexp.tracking.subprocess_tracker import Remote

_PRINTING = {
    *("-h", "--help", "--version", "-c", "--cfg", "-i", "--info"),
    *("--hydra-help", "-sc", "--shell-completion"),
}
"""The flags with which nothing is measured."""


class Ahead:
    """One process that imports torch, and one that imports MLflow; both end with the block.

    Args:
        measures: Whether there shall be the first.
        tracks: Whether there shall be the second.
    """

    def __init__(self, measures: bool, tracks: bool) -> None:
        self._started = Started() if measures else None
        self._store = Remote() if tracks else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(measures=False, tracks=False)

    def keep(self, measures: bool, tracks: bool) -> None:
        """What is not needed after all has ended: it would still import beside what is timed."""
        if self._started and not measures:
            self._started.close()
            self._started = None
        if self._store and not tracks:
            self._store.close()
            self._store = None

    def started(self) -> Started | None:
        """The measuring process, which is the caller's from now on; None when it was given away."""
        started, self._started = self._started, None
        return started

    def store(self) -> Remote:
        """The process that imports MLflow, begun now where it was not."""
        self._store = self._store or Remote()
        return self._store


def of(argv: Sequence[str]) -> Ahead:
    """What a command line will need, as far as that is plain before anything of it is composed."""
    flags = {word.partition("=")[0] for word in argv if word.startswith("-")}
    sweeps = not flags & _PRINTING and all(word.startswith(("-", "~")) or "=" in word for word in argv[:1])
    return Ahead(sweeps and "isolation=inline" not in argv, sweeps and "tracking=none" not in argv)
