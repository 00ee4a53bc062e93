"""Declare a key of the configuration or a column of a row: what it may hold, its unit, what it means.

A field says so in its type: `num_heads: Annotated[int, Whole("KV heads of a token.")]`. The check of what is
typed, the check of rows that are read, docs/reference.md and MLflow's metrics all ask `columns_of`.
"""

import math
from dataclasses import dataclass, replace
from datetime import datetime
from types import NoneType
from typing import Annotated, TypeGuard, get_args, get_origin, get_type_hints

INT32, INT64 = 2**31 - 1, 2**63 - 1
LARGEST = 1e15
"""No time in µs or s, no rate and no power exceeds it, and products of some such numbers are finite."""


@dataclass(frozen=True)
class Column:
    """Any one value: a text, a number, true, false or nothing.

    Attributes:
        doc: What it holds or means.
        unit: Of a number.
        metric: Whether MLflow has it as a metric too, which can be charted and filtered by.
        optional: Whether there may be no value, as the field's type says.
    """

    doc: str = ""
    unit: str = ""
    metric: bool = False
    optional: bool = False

    def find_fault(self, value: object) -> str:
        """Return what the value must be, as the end of a sentence; empty where it is that."""
        return "" if self.optional and value is None else self._find_fault(value)

    def describe(self) -> str:
        """Return what a value may be, in words."""
        return f"{self._find_fault(object())}{' or null' * self.optional}"

    def _find_fault(self, value: object) -> str:
        match value:
            case None | bool():
                return ""
            case str():
                return _TEXT.find_fault(value)
            case int():
                return "" if abs(value) <= INT64 else "a number of 64 bits"
            case float():
                return "" if math.isfinite(value) else "a finite number"
        return "one value"


ANY = Column()


@dataclass(frozen=True)
class Flag(Column):
    """True or false."""

    def _find_fault(self, value: object) -> str:
        return "" if isinstance(value, bool) else "true or false"


@dataclass(frozen=True)
class Whole(Column):
    """A whole number from `least` to `most`."""

    least: int = 1
    most: int = INT32

    def _find_fault(self, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, int):
            return "a whole number"
        if value < self.least:
            return f"at least {self.least}"
        return "" if value <= self.most else f"at most {self.most}"


@dataclass(frozen=True)
class Real(Column):
    """A number from `least` to `most`, whole or not."""

    least: float = -LARGEST
    most: float = LARGEST

    def _find_fault(self, value: object) -> str:
        if not _is_number(value):
            return "a number"
        if value < self.least:
            return f"at least {self.least:g}"
        return "" if value <= self.most else f"at most {self.most:g}"


@dataclass(frozen=True)
class Fraction(Real):
    """A number from 0 to less than 1."""

    def _find_fault(self, value: object) -> str:
        return "" if _is_number(value) and 0 <= value < 1 else "a number from 0 to less than 1"


@dataclass(frozen=True)
class Positive(Real):
    """A number above 0; others are divided by it, and it is drawn on a logarithmic axis."""

    least: float = 0.0

    def _find_fault(self, value: object) -> str:
        is_positive = _is_number(value) and value > 0
        return super()._find_fault(value) if is_positive else "a positive number"


@dataclass(frozen=True)
class Text(Column):
    """A text that can be written as UTF-8; `filled` says that it is not empty."""

    filled: bool = False

    def _find_fault(self, value: object) -> str:
        if not isinstance(value, str) or (self.filled and not value):
            return "a text"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "a text without lone surrogates"
        return ""


_TEXT = Text()


@dataclass(frozen=True)
class Word(Text):
    """One of the words."""

    words: tuple[str, ...] = ()

    def _find_fault(self, value: object) -> str:
        *others, last = self.words
        return "" if value in self.words else f"{', '.join(others)} or {last}"


@dataclass(frozen=True)
class Name(Text):
    """A name on one line; in a case that of the option chosen in the group of the field's name."""

    def _find_fault(self, value: object) -> str:
        is_long = isinstance(value, str) and value.splitlines() not in ([], [value])
        return "a text of one line" if is_long else super()._find_fault(value)


@dataclass(frozen=True)
class Options(Text):
    """The options of a choice as a JSON object; empty for none."""


@dataclass(frozen=True)
class Time(Text):
    """A time in ISO 8601 from 1970 on; empty where it is not known."""

    def _find_fault(self, value: object) -> str:
        if not isinstance(value, str) or not value:
            return super()._find_fault(value)
        try:
            return "" if datetime.fromisoformat(value).timestamp() >= 0 else "a time from 1970 on"
        except (ValueError, OverflowError):
            return "a time in ISO 8601"


def columns_of(declared: type) -> dict[str, Column]:
    """Return the declaration of each declared field of a class, in the order of the fields."""
    hints = get_type_hints(declared, include_extras=True)
    return {
        name: replace(hint.__metadata__[0], optional=NoneType in get_args(hint.__origin__))
        for name, hint in hints.items()
        if get_origin(hint) is Annotated
    }


def _is_number(value: object) -> TypeGuard[int | float]:
    """Return whether the value is a number and not NaN; it may be infinite, or too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
