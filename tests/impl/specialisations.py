"""Specialisations of the CUDA kernel: any two values of two factors occur together in one of them."""

import random
from itertools import combinations

from kvexp.case import Case
from kvexp.impl import make
from kvexp.impl.cuda import Flash
from tests import composed

FACTORS = {
    "layout": composed.options("layout"),
    "source": ["float16", "bfloat16", "float32"],
    "fp8": [False, True],
    "vec": [1, 2, 4, 8, 16],
    "num_heads": [1, 3, 8, 128],
    "head_size": [45, 46, 64, 80, 120, 128, 256],
    "block_size": [1, 8, 16, 32],
    "rows": ["packed", "a view of QKV"],
    "wide_index": [False, True],
}
CANDIDATES = 20
LAYOUTS = {name: make(composed.choice("layout", name)) for name in FACTORS["layout"]}

Row = dict[str, object]
Pair = tuple[tuple[str, object], tuple[str, object]]


def possible(row: Row) -> bool:
    """Whether a call leads to it: no chunk crosses a head or passes an access's width, fp8 in sixteens."""
    vec, head_size, fp8 = row.get("vec"), row.get("head_size"), row.get("fp8")
    if vec and head_size and head_size % vec:
        return False
    if fp8 and head_size and head_size % 16:
        return False
    cache_bytes = {True: 1, False: 4 if row.get("source") == "float32" else 2}.get(fp8, 1)
    return not vec or vec * cache_bytes <= 16


def covering() -> list[Row]:
    """The rows, the same ones each time."""
    drawn = random.Random(0)
    missing = [
        ((a, x), (b, y))
        for a, b in combinations(FACTORS, 2)
        for x in FACTORS[a]
        for y in FACTORS[b]
        if possible({a: x, b: y}) and _completed({a: x, b: y}, drawn)
    ]
    rows = []
    while missing:
        candidates = (_completed(dict(missing[0]), drawn) for _ in range(CANDIDATES))
        best = max(filter(None, candidates), key=lambda row: sum(_holds(row, pair) for pair in missing))
        rows.append(best)
        missing = [pair for pair in missing if not _holds(best, pair)]
    return rows


def flash(row: Row) -> Flash:
    """The constants of one row."""
    num_heads, head_size = row["num_heads"], row["head_size"]
    case = Case(
        op="reshape_and_cache_flash", impl="cuda", impl_options="{}", layout=row["layout"], dtype="",
        kv_cache_dtype="", mode="", timer="", timer_options="", device="", num_tokens=1,
        num_heads=num_heads, head_size=head_size, head_size_v=head_size, block_size=row["block_size"],
        num_blocks=4, slots="random", seed=0,
    )  # fmt: skip
    planes = LAYOUTS[row["layout"]].planes(case, 1)
    packed = num_heads * head_size
    strides = (packed, packed) if row["rows"] == "packed" else (6 * packed, 6 * packed)
    return Flash(
        num_heads=num_heads,
        head_size=head_size,
        block_size=row["block_size"],
        source=row["source"],
        fp8=row["fp8"],
        vec=row["vec"],
        row_strides=strides,
        cache_strides=planes.key.strides[:3],
        wide_index=row["wide_index"],
    )


def _completed(row: Row, drawn: random.Random) -> Row | None:
    """The row with a value for each factor; None where there is no possible one."""
    open_factors = [factor for factor in FACTORS if factor not in row]
    if not open_factors:
        return row
    factor = drawn.choice(open_factors)
    for value in drawn.sample(FACTORS[factor], len(FACTORS[factor])):
        longer = row | {factor: value}
        if possible(longer) and (done := _completed(longer, drawn)):
            return done
    return None


def _holds(row: Row, pair: Pair) -> bool:
    return all(row[factor] == value for factor, value in pair)
