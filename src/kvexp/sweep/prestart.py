"""Start the processes of a sweep, which take seconds to start, before Hydra has composed its curves."""

from collections.abc import Sequence
from typing import Self

from kvexp.host.process import LineChild
from kvexp.sweep.subprocess_worker import start_child
from kvexp.tracking.subprocess_tracker import SubprocessTracker

_PRINTING = {
    *("-h", "--help", "--version", "-c", "--cfg", "-i", "--info"),
    *("--hydra-help", "-sc", "--shell-completion"),
}
"""The flags with which nothing is measured."""


class Prestart:
    """One process that imports torch, if it `measures`, and one that imports MLflow, if it `tracks`.

    Both end with the block.
    """

    def __init__(self, measures: bool, tracks: bool) -> None:
        self._child = start_child() if measures else None
        self._tracker = SubprocessTracker() if tracks else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(measures=False, tracks=False)

    def keep(self, measures: bool, tracks: bool) -> None:
        """End the processes that are not needed: their imports would run beside what is timed."""
        if self._child and not measures:
            self._child.close()
            self._child = None
        if self._tracker and not tracks:
            self._tracker.close()
            self._tracker = None

    def take_child(self) -> LineChild | None:
        """Hand the measuring process over to the caller, once; None when there is none."""
        child, self._child = self._child, None
        return child

    def get_tracker(self) -> SubprocessTracker:
        """Return the process that imports MLflow, started now if it was not."""
        self._tracker = self._tracker or SubprocessTracker()
        return self._tracker


def start_for(argv: Sequence[str]) -> Prestart:
    """Start what a command line will need, as far as its words alone tell."""
    flags = {word.partition("=")[0] for word in argv if word.startswith("-")}
    sweeps = not flags & _PRINTING and all(word.startswith(("-", "~")) or "=" in word for word in argv[:1])
    return Prestart(sweeps and "isolation=inline" not in argv, sweeps and "tracking=none" not in argv)
