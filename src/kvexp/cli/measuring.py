"""Measure the batches of curves that Hydra's sweeper makes as one sweep."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvexp.cli import resume
from kvexp.cli.cleanup import remove_unused_folder
from kvexp.cli.collector import Collector
from kvexp.cli.sweep_task import ListPlaces
from kvexp.host.addresses import mask_secrets
from kvexp.results import sweep_dir
from kvexp.sweep.job import Job
from kvexp.sweep.prestart import Prestart
from kvexp.sweep.repetitions import plan_rounds
from kvexp.sweep.settings import SweepSettings

if TYPE_CHECKING:
    from kvexp.sweep.runner import Sweep

Check = Callable[[Sequence[Job]], None]
"""Called with the jobs before the first is measured; may raise ConfigError."""


class Measuring:
    """The one sweep of a command: it begins with the first batch, and ends with the block.

    Args:
        collector: Has the curves.
        command: What was typed, without secrets.
        check: See `Check`.
        prestarted: The processes that were started before.

    Attributes:
        home: The sweep's folder; None before it begins.
    """

    def __init__(
        self, collector: Collector, command: str, check: Check, prestarted: Prestart | None = None
    ) -> None:
        self.home: Path | None = None
        self._collector = collector
        self._command = command
        self._check = check
        self._prestarted = prestarted
        self._stack = ExitStack()
        self._sweep: Sweep | None = None
        self._count = 0

    def __enter__(self) -> Self:
        """Begin nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """End the sweep: print its table, and send its report."""
        return self._stack.__exit__(kind, error, trace)

    @property
    def code(self) -> int | None:
        """The sweep's exit code; None before it begins."""
        return self._sweep.code if self._sweep else None

    def measure(self, list_places: ListPlaces) -> None:
        """Measure the curves that were collected since the last call.

        Raises:
            ConfigError: They cannot be measured at such places, or every one is wrong.
        """
        curves, self._count = self._collector.valid[self._count :], len(self._collector.valid)
        flags = [flag for flag in self._collector.line.flags if flag != "--multirun"]
        jobs = [
            Job(experiment, folder, (*flags, *map(mask_secrets, overrides)))
            for experiment, folder, overrides in curves
        ]
        self._collector.write_records()
        (settings,) = self._collector.settings
        planned = plan_rounds(jobs, settings.repeat)
        if self._collector.resumes:
            self._stack.callback(_remove_unused, planned)
        self._sweep = self._sweep or self._begin(planned, settings, list_places, flags)
        self._sweep.measure(planned)

    def _begin(
        self, jobs: Sequence[Job], settings: SweepSettings, list_places: ListPlaces, flags: Sequence[str]
    ) -> "Sweep":
        from kvexp.sweep import runner  # here, since what only prints or is wrong does without

        home = self.home = jobs[0].folder.parent
        places = list_places([job.experiment for job in jobs], settings.isolation)
        self._check(jobs)
        kept = self._collector.resolve_overrides()
        sweep_dir.write_command(home, kept, flags)
        again = resume.write_resume(self._collector.line, home, kept)
        wanted = sum(job.num_points for job in jobs)
        opened = runner.open_sweep(home, settings, self._command, self._prestarted, again, places, wanted)
        return self._stack.enter_context(opened)


def _remove_unused(jobs: Sequence[Job]) -> None:
    """Remove the folders of curves whose points were all there already: they have only what Hydra wrote."""
    for job in jobs:
        remove_unused_folder(job.folder, {job.folder.parent})
