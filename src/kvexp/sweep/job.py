"""One curve of a sweep, with its name, where its rows go and what repeats it."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kvexp.experiment import MEANING, Experiment
from kvexp.results.labels import name_curves


@dataclass(frozen=True)
class Job:
    """One curve of a sweep.

    Attributes:
        experiment: What to measure.
        folder: Where its rows go.
        words: What is typed after `python -m kvexp` to measure this curve alone.
        repetition: The round in which it is measured, from 1 on; each round has a process of its own. None
            where there is one round: its rows do not say which.
        name: What tells it apart from the others of the sweep, see `name_jobs`.
    """

    experiment: Experiment
    folder: Path
    words: tuple[str, ...]
    repetition: int | None = None
    name: str = ""

    @property
    def num_points(self) -> int:
        """How many points it has."""
        return len(self.experiment.workload.num_tokens)


def name_jobs(jobs: Sequence[Job], keys: Collection[str] | None = None) -> list[Job]:
    """Name the jobs before any is measured; see `name_curves`, also for the keys."""
    names = name_curves([asdict(next(_resolve(job.experiment).cases())) for job in jobs], keys)
    return [replace(job, name=name) for job, name in zip(jobs, names, strict=True)]


def _resolve(experiment: Experiment) -> Experiment:
    """Resolve each `auto`, as far as the device is known before a process has looked for one."""
    device = MEANING["cuda"]["device"] if experiment.device == "cuda" else experiment.device
    return experiment if device == "auto" else experiment.resolve(device)
