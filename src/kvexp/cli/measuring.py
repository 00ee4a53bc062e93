"""Measure the batches of curves that Hydra's sweeper makes as one sweep."""

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvexp.cli import resume
from kvexp.cli.cleanup import remove_unused_folder
from kvexp.cli.collector import Collector, Curve
from kvexp.cli.sweep_task import ListPlaces
from kvexp.host.addresses import mask_secrets
from kvexp.host.terminal import say
from kvexp.measurement import Row
from kvexp.results import sweep_dir
from kvexp.results.point_identity import CASE
from kvexp.results.provenance import Provenance, read_source_tags
from kvexp.sweep.job import Job, name_jobs
from kvexp.sweep.prestart import Prestart
from kvexp.sweep.repetitions import plan_rounds
from kvexp.sweep.settings import SweepSettings

if TYPE_CHECKING:
    from kvexp.sweep.runner import Sweep

_HYDRA = ".hydra"
ROUNDS = 5
"""Processes by which the best curve and the default are measured at the end, unless repeat= says how many."""

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
        self._flags = [flag for flag in collector.line.flags if flag != "--multirun"]
        self._sweep: Sweep | None = None
        self._trials: list[tuple[Job, float]] = []
        self._comparison: tuple[list[Row], list[Row]] = [], []
        self._title = ""

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

    def measure(self, list_places: ListPlaces) -> list[float]:
        """Measure the collected batch of curves, and return the objective of each.

        Raises:
            ConfigError: They cannot be measured at such places, or every one is wrong.
        """
        collector = self._collector
        (settings,) = collector.settings
        if not collector.batch:
            return []
        jobs = self._make_jobs(collector.batch)
        collector.write_records()
        planned = jobs if collector.default else plan_rounds(jobs, settings.repeat)
        if collector.resumes:
            self._stack.callback(_remove_unused, planned)
        self._sweep = self._sweep or self._begin(planned, settings, list_places)
        found = self._sweep.measure(planned, may_repeat=collector.default is not None)
        rows: dict[tuple[str, ...], list[Row]] = {}
        for job, own in zip(planned, found, strict=True):
            rows.setdefault(job.words, []).extend(own)
        values = [
            collector.objective.compute(rows[job.words], job.experiment.workload.num_tokens) for job in jobs
        ]
        self._trials += zip(jobs, values, strict=True)
        return values

    def confirm(self) -> None:
        """Measure the best curve of a sweeper that optimises and the default anew, in rounds.

        The best of many trials is partly luck, so its own trial does not count.
        """
        default, sweep, home = self._collector.default, self._sweep, self.home
        if not (default and sweep and home) or sweep.is_broken:
            return
        timed = [trial for trial in self._trials if math.isfinite(trial[1])]
        if not timed:
            say(f"kvexp: none of {len(self._trials)} trials was timed, so there is no best one")
            return
        choose = max if self._collector.objective.grows else min
        best, _ = choose(timed, key=lambda trial: trial[1])
        what = " ".join(word for word in best.words if word not in (*self._flags, *default[2]))
        if best.experiment == default[0]:
            say(f"kvexp: of {len(self._trials)} trials the default is the best ({what})")
            return
        (settings,) = self._collector.settings
        if settings.isolation == "inline":
            say(f"kvexp: isolation=inline has no processes to measure the best one again ({what})")
            return
        repeat = settings.repeat if settings.repeat > 1 else ROUNDS
        number = sweep_dir.next_number(home)
        folders = [home / str(number), home / str(number + 1)]
        self._collector.write_default(folders[0])
        shutil.copytree(best.folder / _HYDRA, folders[1] / _HYDRA)
        pair = [replace(*self._make_jobs([default]), folder=folders[0]), replace(best, folder=folders[1])]
        planned = plan_rounds(pair, repeat)
        found = zip(planned, sweep.measure(planned, anew=True), strict=True)
        sides: tuple[list[Row], list[Row]] = [], []
        for job, rows in found:
            sides[job.experiment == best.experiment].extend(rows)
        self._comparison = sides
        self._title = (
            f"the best of {len(self._trials)} trials ({what}) beside the default, {repeat} processes each:"
        )

    def print_best(self) -> None:
        """Print how the best curve compares with the default, if they were measured; see `confirm`."""
        before, now = self._comparison
        if not (before and now):
            return
        from kvexp.cli import comparison_table  # here, since what is wrong does without
        from kvexp.results import compare

        differing = [name for name in CASE if before[0].get(name) != now[0].get(name)]
        say(self._title)
        comparison_table.print_points(compare.compare(before, now, ignored=differing, in_one_sweep=True))

    def _make_jobs(self, curves: Sequence[Curve]) -> list[Job]:
        """Make the jobs of a batch; where others may follow, what the sweeper may choose names them."""
        jobs = [
            Job(experiment, folder, (*self._flags, *map(mask_secrets, overrides)))
            for experiment, folder, overrides in curves
        ]
        return name_jobs(jobs, self._collector.swept if self._collector.default else None)

    def _begin(self, jobs: Sequence[Job], settings: SweepSettings, list_places: ListPlaces) -> "Sweep":
        from kvexp.sweep import runner  # here, since what only prints or is wrong does without

        home = self.home = jobs[0].folder.parent
        places = list_places([job.experiment for job in jobs], settings.isolation, self._stack)
        self._check(jobs)
        kept = self._collector.resolve_overrides()
        tags = read_source_tags() | dict(settings.tracking.tags)
        sweep_dir.write_command(home, kept, self._flags, Provenance(tags, self._collector.swept))
        again = resume.write_resume(self._collector.line, home, kept)
        wanted = sum(job.num_points for job in jobs)
        opened = runner.open_sweep(home, settings, self._command, self._prestarted, again, places, wanted)
        return self._stack.enter_context(opened)


def _remove_unused(jobs: Sequence[Job]) -> None:
    """Remove the folders of curves whose points were all there already: they have only what Hydra wrote."""
    for job in jobs:
        remove_unused_folder(job.folder, {job.folder.parent})
