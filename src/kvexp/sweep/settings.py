"""The settings of a whole sweep, none of which changes a measured point."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from kvexp.column import Flag, Positive, Text, Whole, Word
from kvexp.sweep.objective import COLUMN
from kvexp.tracking import TrackingSettings

Isolation = Literal["process", "inline"]


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep is run.

    Attributes:
        tracking: Where its runs go.
        timeout_s: Seconds after which a point is given up and its process killed; None waits for ever.
        fail_fast: Whether the first point that is `incorrect` or `failed` ends the sweep.
        isolation: `process` measures in a process of its own, `inline` in this one, for a debugger.
        resumes: Whether the folder's rows stay, and points with a correct row there are not measured again.
        repeat: How many processes measure each curve, in rounds; see `kvexp.sweep.repetitions`. Where a
            sweeper optimises, only the best curve and the default are measured so, at the end.
        objective: What such a sweeper optimises; see `kvexp.sweep.objective`.
    """

    tracking: TrackingSettings
    timeout_s: Annotated[float | None, Positive(most=1e9)] = None
    fail_fast: Annotated[bool, Flag()] = False
    isolation: Annotated[Isolation, Word(words=get_args(Isolation))] = "process"
    resumes: bool = False
    repeat: Annotated[int, Whole(most=1000)] = 1
    objective: Annotated[str, Text(filled=True)] = COLUMN
