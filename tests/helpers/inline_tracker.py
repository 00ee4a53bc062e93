"""A store in this very process, where what is tested is not the process that imports MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvexp.cli.commands import sync
from kvexp.sweep import prestart
from kvexp.tracking import Tracker, TrackingSettings, connect


class InlineTracker:
    """Stands for a `SubprocessTracker`."""

    def connect(self, settings: TrackingSettings) -> None:
        self._settings = settings

    def ready(self, timeout_s: float = 0.0) -> bool:
        return True

    def wait(self) -> Tracker:
        return connect(self._settings)

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def used_by_commands(made: object) -> Iterator[None]:
    """Have sweeps and `kvexp sync` in this process take that tracker for their own."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (prestart, sync):
            patched.setattr(module, "SubprocessTracker", lambda: made)
        yield
