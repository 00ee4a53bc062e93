"""What a declared column takes, and what it says of anything else."""

import json
from dataclasses import dataclass
from typing import Annotated

import pytest

from kvexp.column import (
    ANY,
    Column,
    Flag,
    Fraction,
    Name,
    Options,
    Positive,
    Real,
    Text,
    Time,
    Whole,
    Word,
    columns_of,
)

LONG = 10**400  # no float holds it, and JSON spells it
NAN, INFINITY = json.loads("NaN"), json.loads("4e700")
BROKEN = json.loads(r'"\ud800"')


@pytest.mark.parametrize(
    ("declared", "values"),
    [
        (ANY, (None, True, 2**63 - 1, -(2**63) + 1, 1.7e308, "", "µs \U0001f600")),
        (Flag(), (True, False)),
        (Whole(), (1, 2**31 - 1)),
        (Whole(least=0, most=2**63 - 1), (0, 2**63 - 1)),
        (Real(), (-1e15, 0, 2.5, 1e15)),
        (Real(least=0), (0, 0.0, 5e-324)),
        (Fraction(), (0, 0.0, 0.999)),
        (Positive(), (5e-324, 1, 1e15)),
        (Text(), ("", "a")),
        (Text(filled=True), ("a",)),
        (Name(), ("", "a b", "µ")),
        (Word(words=("a", "b")), ("a", "b")),
        (Options(), ("", "{}")),
        (Time(), ("", "2026-11-21T10:00:00.000+00:00", "1970-01-01T00:00:00+00:00")),
        (Text(optional=True), (None, "")),
    ],
)
def test_what_was_declared_has_no_fault(declared, values):
    assert [declared.find_fault(value) for value in values] == [""] * len(values)


@pytest.mark.parametrize(
    ("declared", "fault", "values"),
    [
        (ANY, "one value", ([], {}, b"", (1,))),
        (ANY, "a finite number", (INFINITY, -INFINITY, NAN)),
        (ANY, "a number of 64 bits", (2**63, 10**30, -LONG)),
        (ANY, "a text without lone surrogates", (BROKEN,)),
        (Flag(), "true or false", (None, 0, 1, "true")),
        (Whole(), "a whole number", (None, True, 1.0, INFINITY, "1", [1])),
        (Whole(), "at least 1", (0, -2, -LONG)),
        (Whole(), "at most 2147483647", (2**31, 2**70, LONG)),
        (Real(), "a number", (None, False, "fast", NAN, [])),
        (Real(), "at most 1e+15", (1e16, INFINITY, LONG)),
        (Real(least=0), "at least 0", (-5e-324, -INFINITY, -LONG)),
        (Fraction(), "a number from 0 to less than 1", (None, True, 1, 1.0, -0.1, NAN, INFINITY, LONG, "0")),
        (Positive(), "a positive number", (None, True, 0, -1, NAN, -INFINITY, "1")),
        (Positive(), "at most 1e+15", (1.7e308, 10**16, LONG, INFINITY)),
        (Positive(least=1e-9), "at least 1e-09", (5e-324,)),
        (Text(), "a text", (None, 5, False, b"")),
        (Text(filled=True), "a text", ("",)),
        (Text(), "a text without lone surrogates", (BROKEN, f"a{BROKEN}b")),
        (Name(), "a text of one line", ("\n", "a\n", "a\nb", "a\u2028b")),
        (Name(), "a text without lone surrogates", (BROKEN,)),
        (Name(), "a text", (None, 5)),
        (Word(words=("a", "b", "c")), "a, b or c", (None, "", "d", BROKEN, ["a"], 1)),
        (Options(), "a text", ({}, None)),
        (Time(), "a text", (5, None)),
        (Time(), "a time in ISO 8601", ("noon", "2026-13-01", BROKEN)),
        (Time(), "a time from 1970 on", ("1969-12-31T00:00:00+00:00",)),
    ],
)
def test_anything_else_is_answered_by_what_it_must_be(declared, fault, values):
    assert [declared.find_fault(value) for value in values] == [fault] * len(values)


def test_a_class_has_the_columns_that_it_and_its_bases_declare_in_the_order_of_its_fields():
    @dataclass
    class Base:
        first: Annotated[int, Whole("One.")]
        plain: int

    @dataclass
    class Derived(Base):
        second: Annotated[float | None, Real("Two.", "µs", metric=True)]

    assert dict(columns_of(Derived)) == {
        "first": Whole("One."),
        "second": Real("Two.", "µs", metric=True, optional=True),
    }
    assert dict(columns_of(Column)) == {}
