"""The number that a curve returns to a sweeper which optimises: `objective=latency_us@4096`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Self

from kvexp.column import columns_of
from kvexp.errors import ConfigError
from kvexp.measurement import Row, Statistics

COLUMN = "latency_us"
"""The column by default."""
_GROWING = ("gb_per_s", "copy_fraction")
"""The columns that are larger where a curve is faster."""
_LATENCIES = tuple(
    name for name in columns_of(Statistics) if name.startswith(COLUMN) and name != f"{COLUMN}_std"
)
_POSSIBLE = (*_LATENCIES, "host_us", *_GROWING)


@dataclass(frozen=True)
class Objective:
    """Say what of a curve's rows is optimised.

    Attributes:
        column: A column of a row.
        num_tokens: The point that counts; None for the geometric mean of all points.
    """

    column: str = COLUMN
    num_tokens: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `COLUMN` or `COLUMN@NUM_TOKENS`.

        Raises:
            ConfigError: It is something else, or the column is none of a latency.
        """
        column, at, size = text.partition("@")
        if column not in _POSSIBLE or (at and not re.fullmatch(r"[1-9]\d{0,9}", size)):
            raise ConfigError(
                f"objective must be COLUMN or COLUMN@NUM_TOKENS, as latency_us@4096, not {text!r}; "
                f"a column is one of {', '.join(_POSSIBLE)}"
            )
        return cls(column, int(size) if at else None)

    def __str__(self) -> str:
        """Return it as it is typed."""
        return self.column if self.num_tokens is None else f"{self.column}@{self.num_tokens}"

    @property
    def grows(self) -> bool:
        """Say whether it is larger where a curve is faster, so that it is to be maximised."""
        return self.column in _GROWING

    @property
    def worst(self) -> float:
        """The number of a curve that was not timed."""
        return -math.inf if self.grows else math.inf

    def compute(self, rows: Sequence[Row], sizes: Sequence[int]) -> float:
        """Return the number of a curve of these sizes; the worst where a point that counts is not `ok`."""
        wanted = sizes if self.num_tokens is None else [self.num_tokens]
        values = {row["num_tokens"]: row.get(self.column) for row in rows if row["status"] == "ok"}
        found = [values.get(size) for size in wanted]
        return geometric_mean(filter(None, found)) if all(found) else self.worst
