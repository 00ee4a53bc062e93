"""Group rows by curve, and name each curve by what tells it apart from the others."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kvexp.case import Case, Sizes
from kvexp.column import Options, columns_of
from kvexp.experiment import MEANING
from kvexp.measurement import Row
from kvexp.results.overrides import quote_value
from kvexp.results.point_identity import get_value, get_values

OPTIONS = tuple(
    name.removesuffix("_options") for name, column in columns_of(Case).items() if isinstance(column, Options)
)
"""The groups whose options a row holds, each as the column `GROUP_options`."""

_NAMES = ("impl", "layout", "dtype", "kv_cache_dtype", "scale", "device", "mode", "workload", "op")
_OTHERS = [name for name in columns_of(Case) if name not in (*_NAMES, "num_tokens", "layout_reason")]
CURVE = (*_NAMES, *sorted(_OTHERS, key=lambda name: name.endswith("_options")))
"""The columns of a case that are fixed along a curve, those that people vary most first."""

DEVICE = "device_name"
"""The column that names a GPU's or a CPU's kind: no choice of a curve, but it can be compared."""

NAME = "curve"
"""The column in which a sweep writes the name that it has given to a row's curve."""

TOGETHER = {
    "op": ("op_options",),
    "impl": ("impl_options",),
    "workload": tuple(columns_of(Sizes)),
    "num_heads": ("num_query_heads",),
    "head_size": ("head_size_v",),
    "timer": ("timer_options",),
}
"""The columns that vary with a choice: another implementation has other options."""

_SAME = {"head_size_v": "head_size", "num_query_heads": "num_heads"}
"""Columns that conf/ gives the value of another one."""
_MAIN = 4
"""How many of CURVE name a curve that differs from no other."""
_UNQUANTISED = "unquantised"
"""The cache that holds the items as they are, among curves of several dtypes."""

Columns = Mapping[str, Any]
"""Columns of a curve, of a row or of what is planned."""


def group_rows(rows: Sequence[Row], columns: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Group the rows by their values of these columns, see `get_values`."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(get_values(row, columns), []).append(row)
    return found


def group_by_curve(rows: Sequence[Row]) -> list[list[Row]]:
    """Group the rows by curve: equal in every column of the case but `num_tokens`."""
    return list(group_rows(rows, CURVE).values())


def find_varied(curves: Sequence[Columns], columns: Sequence[str]) -> list[str]:
    """Find the columns in which the curves differ, in their order.

    One that varies with a choice (TOGETHER) is left out where it differs only as the choice does: the sizes
    of a named workload.
    """
    varied = [column for column in columns if len({curve.get(column) for curve in curves}) > 1]
    return [
        column
        for column in varied
        if not any(
            column in TOGETHER.get(choice, ()) and follows(curves, column, choice) for choice in varied
        )
    ]


def name_curves(curves: Sequence[Columns], keys: Collection[str] | None = None) -> list[str]:
    """Name each curve by every column in which they differ; curves that do not by their main choices.

    Args:
        curves: The columns CURVE of each.
        keys: The keys that a sweeper may choose, such as `layout` and `impl.num_warps`, where the curves are
            not all known: these then name a curve, also where they do not differ.
    """
    alike = simplify_curves(curves, keys)
    columns = find_varied(alike, CURVE) if keys is None else _list_columns(keys)
    names = [_join(curve, columns) for curve in alike]
    return [name or _join_main(curve) for name, curve in zip(names, curves, strict=True)]


def label_curves(curves: Sequence[Sequence[Row]]) -> list[str]:
    """Return the name of each curve, by its rows: the one that its sweep has given it, or one for these.

    The sweep's names count where they tell all of these curves apart; not in rows of several sweeps that do
    not say in their names what differs between them.
    """
    firsts = [curve[0] for curve in curves]
    alike = simplify_curves(firsts)
    columns = find_varied(alike, CURVE)
    told = [row.get(NAME) for row in firsts]
    if len(set(told)) == len(told) and all(
        name and set(_join(curve, columns).split()) <= set(name.split())
        for name, curve in zip(told, alike, strict=True)
    ):
        return [str(name) for name in told]
    return name_curves(firsts)


def simplify_curves(curves: Sequence[Columns], keys: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return the curves' columns with what is to be compared and said of them.

    Of the options of one owner those that all its curves share are left out, and how long one sampled; with
    `keys`, those that no key names. A cache of `auto` becomes what it holds. A mode or a timer is left out
    where it is what `auto` means on each curve's device, as are a head size of V and a number of query heads
    that are those of K.
    """
    found = [{column: get_value(curve, column) for column in curve} for curve in curves]
    for owner in OPTIONS:
        told = _find_told_options(found, owner) if keys is None else None
        for curve in found:
            options = {
                option: value
                for option, value in read_options(curve, owner).items()
                if (f"{owner}.{option}" in (keys or ()) if told is None else option in told[curve.get(owner)])
            }
            curve[f"{owner}_options"] = json.dumps(options, sort_keys=True)
    has_dtypes = "dtype" in (keys or ()) or len({curve.get("dtype") for curve in curves}) > 1
    for curve in found:
        if curve.get("kv_cache_dtype") == "auto":
            curve["kv_cache_dtype"] = _UNQUANTISED if has_dtypes else curve.get("dtype")
    for column in ("mode", "timer", *_SAME):
        if all(curve.get(column) == _get_usual(curve, column) for curve in found):
            for curve in found:
                curve.pop(column, None)
    return found


def restore_auto(row: Columns) -> dict[str, Any]:
    """Return the columns with `auto` for a mode and a timer that are what it means on their device."""
    usual = {column: "auto" for column in ("mode", "timer") if row.get(column) == _get_usual(row, column)}
    return {**row, **usual}


def format_column(row: Columns, column: str) -> str:
    """Format a column for a name: a choice as it is, a number or an option as `name=value`."""
    value = row.get(column)
    if column.endswith("_options"):
        options = read_options(row, column.removesuffix("_options"))
        return " ".join(f"{name}={quote_value(option)}" for name, option in options.items())
    if column == "kv_cache_dtype":  # a type alone does not say which column it is of
        return f"{value} cache"
    return str(value) if column in _NAMES else f"{column}={value}"


def read_options(row: Columns, group: str) -> dict[str, Any]:
    """Return the options of the choice in a group, by name."""
    found: dict[str, Any] = json.loads(row.get(f"{group}_options") or "{}")
    return found


def follows(curves: Sequence[Columns], column: str, choice: str) -> bool:
    """Return whether curves that are equal in the choice are so in the column."""
    pairs = {(curve.get(choice), curve.get(column)) for curve in curves}
    return len(pairs) == len({value for value, _ in pairs})


def _find_told_options(curves: Sequence[Columns], owner: str) -> dict[Any, set[str]]:
    """Find for each choice of the owner the options in which its curves differ."""
    owned: dict[Any, list[dict[str, Any]]] = {}
    for curve in curves:
        owned.setdefault(curve.get(owner), []).append(read_options(curve, owner))
    return {
        name: {
            option
            for option in {option for options in own for option in options}
            if len({repr(options.get(option, ...)) for options in own}) > 1
        }
        for name, own in owned.items()
    }


def _get_usual(curve: Columns, column: str) -> Any:
    if column in _SAME:
        return curve.get(_SAME[column])
    device = str(curve.get("device"))
    kinds = [kind for kind in MEANING if device.startswith(kind)]
    return MEANING[kinds[0]][column] if kinds else "auto"


def _list_columns(keys: Collection[str]) -> list[str]:
    """List the columns that hold what these keys choose."""
    found = set()
    for key in keys:
        group, _, inside = key.partition(".")
        found |= {f"{group}_options"} if group in OPTIONS and inside else {inside or group}
    return [column for column in CURVE if column in found]


def _join(curve: Columns, columns: Sequence[str]) -> str:
    """Join what is said of these columns to one line that can be written as UTF-8."""
    words = " ".join(format_column(curve, column) for column in columns).split()
    return " ".join(words).encode(errors="replace").decode()


def _join_main(curve: Columns) -> str:
    return _join(curve, [column for column in CURVE[:_MAIN] if curve.get(column) not in ("auto", None)])
