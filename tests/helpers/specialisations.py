"""List specialisations of the CUDA kernels, each for an architecture, that cover all pairs of two factors."""

import random
from functools import cache
from itertools import combinations

from kvexp.impl.cuda.items import Items
from kvexp.impl.cuda.launcher import Spec
from kvexp.impl.cuda.reshape_and_cache import HeadMajor
from kvexp.impl.cuda.reshape_and_cache_flash import Flash

ARCHES = ["sm_80", "sm_89", "sm_90", "sm_100"]
ITEMS = {
    "source": ["float16", "bfloat16", "float32", "float8_e4m3fn"],
    "cache": ["COPIED", "E4M3", "E5M2"],
    "scale_per_head": [False, True],
}
SIZES = {
    "arch": ARCHES,
    "num_heads": [1, 3, 128],
    "block_size": [1, 13, 16],
    "rows": ["packed", "a view of QKV"],
    "wide_index": [False, True],
    "slot_first": [False, True],
}
FACTORS = {
    "flash": {
        **ITEMS,
        **SIZES,
        "vec": [1, 2, 4, 8, 16],
        "unroll": [1, 4],
        "head_sizes": [(45, 45), (46, 34), (80, 80), (120, 120), (192, 128)],
        "outside": ["tokens", "heads", "tokens, K and V in one", "heads, K and V in one"],
    },
    "head_major": {
        **ITEMS,
        **SIZES,
        "source_vec": [1, 4, 8, 16],
        "key_vec": [1, 4, 16],
        "head_size": [80, 128],
        "layers": [1, 3],
        "exchange": [False, True],
    },
}
CANDIDATES = 30

Row = dict[str, object]
Pair = tuple[tuple[str, object], tuple[str, object]]


def is_possible(row: Row) -> bool:
    """Return whether a call leads to it: no piece crosses a head or exceeds an access's width."""
    source, cache = row.get("source", ""), row.get("cache", "")
    if source.startswith("float8") and cache.startswith("E"):
        return False
    if cache == "COPIED" and row.get("scale_per_head"):
        return False
    head_sizes = row.get("head_sizes", ())
    # The narrowest cache item that the row still allows.
    cache_bytes = Items(source, cache).cache_bytes if source and cache else 1
    vecs = [row[factor] for factor in ("vec", "source_vec", "key_vec") if factor in row]
    if any(vec * cache_bytes > 16 for vec in vecs):
        return False
    return "vec" not in row or not any(size % row["vec"] for size in head_sizes)


@cache
def covering(kernel: str) -> list[Row]:
    """Return the rows of `flash` or of `head_major`, the same each time."""
    drawn = random.Random(0)
    factors = FACTORS[kernel]
    missing = dict.fromkeys(
        ((a, x), (b, y))
        for a, b in combinations(factors, 2)
        for x in factors[a]
        for y in factors[b]
        if is_possible({a: x, b: y}) and _complete({a: x, b: y}, factors, drawn)
    )
    rows = []
    while missing:
        first = dict(next(iter(missing)))
        candidates = [_complete(first, factors, drawn) for _ in range(CANDIDATES)]
        found = [[pair for pair in _pairs(row, factors) if pair in missing] for row in candidates]
        most = max(range(CANDIDATES), key=lambda number: len(found[number]))
        rows.append(candidates[most])
        for pair in found[most]:
            del missing[pair]
    return rows


def spec(kernel: str, row: Row) -> Spec:
    """Return the specialisation of one row."""
    return {"flash": _flash, "head_major": _head_major}[kernel](row)


def _flash(row: Row) -> Flash:
    heads, block_size = row["num_heads"], row["block_size"]
    head_size, head_size_v = row["head_sizes"]
    order, _, in_one = row["outside"].partition(", ")
    step = head_size + head_size_v if in_one else head_size
    inner = (heads * step, step) if order == "tokens" else (step, block_size * step)
    block_stride = heads * block_size * (step if in_one else head_size + head_size_v)
    return Flash(
        num_heads=heads,
        head_size=head_size,
        head_size_v=head_size_v,
        block_size=block_size,
        items=_items(row),
        vec=row["vec"],
        row_strides=_row_strides(row, heads * head_size, heads * head_size_v),
        cache_strides=(block_stride, *inner),
        slot_first=row["slot_first"],
        unroll=row["unroll"],
        wide_index=row["wide_index"],
    )


def _head_major(row: Row) -> HeadMajor:
    heads, head_size = row["num_heads"], row["head_size"]
    block = heads * head_size * row["block_size"]
    return HeadMajor(
        num_heads=heads,
        head_size=head_size,
        block_size=row["block_size"],
        items=_items(row),
        source_vec=row["source_vec"],
        key_vec=row["key_vec"],
        row_strides=_row_strides(row, heads * head_size, heads * head_size),
        block_strides=(row["layers"] * block, row["layers"] * block),
        slot_first=row["slot_first"],
        exchange=row["exchange"],
        wide_index=row["wide_index"],
    )


def _items(row: Row) -> Items:
    return Items(*(row[factor] for factor in ITEMS))


def _row_strides(row: Row, key: int, value: int) -> tuple[int, int]:
    return (key, value) if row["rows"] == "packed" else (5 * key + value, 5 * key + value)


def _complete(row: Row, factors: dict[str, list[object]], drawn: random.Random) -> Row | None:
    """Return the row with a value for each factor; None where none is possible."""
    open_factors = [factor for factor in factors if factor not in row]
    if not open_factors:
        return row
    factor = drawn.choice(open_factors)
    for value in drawn.sample(factors[factor], len(factors[factor])):
        longer = row | {factor: value}
        if is_possible(longer) and (done := _complete(longer, factors, drawn)):
            return done
    return None


def _pairs(row: Row, factors: dict[str, list[object]]) -> list[Pair]:
    """Return the pairs of values that the row holds, as `missing` has them."""
    return list(combinations([(factor, row[factor]) for factor in factors], 2))
