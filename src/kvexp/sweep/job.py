"""One curve of a sweep, with where its rows go and what repeats it."""

from dataclasses import dataclass
from pathlib import Path

from kvexp.experiment import Experiment


@dataclass(frozen=True)
class Job:
    """One curve of a sweep.

    Attributes:
        experiment: What to measure.
        folder: Where its rows go.
        words: What is typed after `python -m kvexp` to measure this curve alone.
        repetition: The round in which it is measured, from 1 on; each round has a process of its own. None
            where there is one round: its rows do not say which.
    """

    experiment: Experiment
    folder: Path
    words: tuple[str, ...]
    repetition: int | None = None

    @property
    def label(self) -> str:
        """Its main choices, as the user sees them."""
        e = self.experiment
        parts = (e.impl, e.layout, e.dtype, e.kv_cache_dtype)
        return " ".join(part.name for part in parts if part.name != "auto")

    @property
    def num_points(self) -> int:
        """How many points it has."""
        return len(self.experiment.workload.num_tokens)
