"""Rows of which some columns hold a value of a wrong type or out of range; the same for the same seed."""

import json
import math
import random

from kvexp.column import Whole, Word
from kvexp.measurement import COLUMNS
from tests.helpers.recorded_rows import curve, refused

TYPES = [None, True, False, [], [1], {}, {"a": 1}, 5, 2.5, "", "x", "5"]
NUMBERS = [
    *(0, -1, -2, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**70, 10**30, -(10**30), 10**400),
    *(0.0, -0.0, -1.5, 0.5, 5e-324, 1e-300, 1e-12, 1e-9, 1e15, 1e16, 1e300, 1.7e308),
    *(math.inf, -math.inf, math.nan),
]
TEXTS = [
    *("\ud800", "a\udfffb", "\x00", "\x1b[31m", "\n\n", "|<b>&`$x$", "µ 😀 \u2028 \u202e", "x" * 5000),
    *("noon", "2026-13-01", "0001-01-01", "9999-12-31T23:59:59", "2026-11-21T10:00:00.000+00:00"),
    *("[1]", "{", "{}", '{"a":1e999}', '{"a":[1]}', '{"a":NaN}', r'{"a":"\ud800"}', f'{{"a":{10**30}}}'),
    *("cpu", "copy", "auto", "cuda", "triton", "full", "padding, past_end", "a, b"),
]
OTHERS = ["surprise", "", "\ud800", "impl_threads", "sweep", "command", "processes", "latencies_us"]


def make_rows(seed: int) -> list[dict]:
    """Two curves, and a point that was refused; one to three columns of some of the rows were changed."""
    draw = random.Random(seed)
    rows = [
        *curve({1: 2.0, 64: 3.0, 4096: 40.0}),
        *curve({1: 3.0, 64: 2.0, 4096: 30.0}, impl="triton", repetition=2),
        refused("skipped", "it needs a GPU", impl="torch"),
    ]
    for _ in range(draw.randint(1, 3)):
        column = draw.choice([*COLUMNS, *OTHERS])
        if draw.random() < 0.1:
            draw.choice(rows).pop(column, None)
            continue
        value = draw_value(draw, column)
        for row in draw.sample(rows, draw.choice([1, 1, 2, len(rows)])):
            row[column] = value
    return rows


def draw_value(draw: random.Random, column: str) -> object:
    """Draw a value that the column may hold, or one of another type, or one out of range."""
    declared = COLUMNS.get(column)
    usual: list[object] = [10 ** draw.uniform(-9, 15), draw.randint(1, 10**6), draw.choice(TEXTS)]
    if isinstance(declared, Whole):
        usual = [declared.least, declared.most, draw.randint(declared.least, declared.most)]
    elif isinstance(declared, Word):
        usual = list(declared.words)
    return draw.choice(draw.choice([usual, usual, usual, TYPES, NUMBERS, TEXTS]))


def encode(rows: list[dict]) -> str:
    """The rows as lines; what is infinite is spelled as a number that no float can hold."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return text.replace("-Infinity", "-1e999").replace("Infinity", "4e700")
