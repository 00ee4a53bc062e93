"""Compare two sets of rows point by point: what became faster, slower, broken or missing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from kvexp.case import Case
from kvexp.errors import ConfigError
from kvexp.measurement import Row, is_right, is_wrong
from kvexp.results.labels import (
    CURVE,
    DEVICE,
    OPTIONS,
    TOGETHER,
    format_column,
    group_by_curve,
    group_rows,
    label_curves,
    read_options,
    restore_auto,
)
from kvexp.results.point_identity import CASE, get_value, get_values
from kvexp.results.verdict import Verdict, between_gpus, judge_processes, latencies

Key = tuple[Any, ...]

WORST_FIRST = ("broken", "missing", "slower", "ambiguous", "new", "same", "faster")
"""Every word for a point, the worst first.

`broken`: the candidate is wrong or fails. `missing`: only the baseline was measured, or a process of the
candidate did not time a point that the baseline's processes did.
"""

_NONE_SHARED = "the two share no case: nothing is measured in both with equal choices and sizes"
_SAME_MACHINE = ("device_name", "driver")


@dataclass(frozen=True)
class Point:
    """One point of the two sides.

    Attributes:
        label: Its curve's name.
        num_tokens: Its size.
        word: One of WORST_FIRST.
        baseline_us: The baseline's latency in µs, see `verdict.latencies`; None where no process timed it.
        candidate_us: The candidate's, in the same way.
        verdict: The ratio and its interval, where both have a latency.
        note: Why it is broken or missing, in the row's words; else how many processes each side has if they
            differ, and whether another GPU measured the candidate.
    """

    label: str
    num_tokens: int
    word: str
    baseline_us: float | None = None
    candidate_us: float | None = None
    verdict: Verdict | None = None
    note: str = ""


def compare(
    baseline: Sequence[Row],
    candidate: Sequence[Row],
    *,
    ignored: Sequence[str] = (),
    across: bool = False,
    tolerance: float | None = None,
    in_one_sweep: bool = False,
) -> list[Point]:
    """Compare every point of either side; return the worst first.

    Of a baseline of several kinds of GPU the candidate's kind counts, if the candidate has one kind. The
    number of a GPU (`cuda:0` or `cuda:1`) is ignored, unless one side was measured on several. Where the two
    sides used different GPUs of one kind, the verdict allows for the difference of equal GPUs.

    Args:
        baseline: Rows; those of one case come from different processes.
        candidate: Rows, in the same way.
        ignored: Columns of a case in which the two sides may differ.
        across: Compare different devices and drivers; what `auto` means on each is then no difference.
        tolerance: The part by which two processes differ; by default `verdict.between_processes`.
        in_one_sweep: Both sides may be of the same sweeps, see `verdict.judge_processes`.

    Raises:
        ConfigError: The two were measured on other GPUs or drivers, share no case, or measured none.
    """
    if across:
        baseline, candidate = ([restore_auto(row) for row in side] for side in (baseline, candidate))
    else:
        baseline = _select_gpu(baseline, candidate)
        check_machines(baseline, candidate)
    compares_gpus = "device" in ignored
    if across or not any(_has_several_devices(rows) for rows in (baseline, candidate)):
        ignored = [*ignored, "device"]
    columns = [column for column in CASE if column not in ignored]
    sides = [group_rows(rows, columns) for rows in (baseline, candidate)]
    if not set(sides[0]) & set(sides[1]):
        raise ConfigError(_NONE_SHARED + _list_differences(columns, *sides))
    names = label_cases([*baseline, *candidate], columns)
    points = [
        compare_point(
            names[key],
            sides[0].get(key, []),
            sides[1].get(key, []),
            tolerance,
            compares_gpus=compares_gpus,
            in_one_sweep=in_one_sweep,
        )
        for key in dict.fromkeys([*sides[0], *sides[1]])
    ]
    found = sorted(filter(None, points), key=_rank)
    if not found:
        raise ConfigError("neither of the two measured anything: all that they share was skipped in both")
    return found


def select_value(rows: Sequence[Row], axis: str, value: str) -> list[Row]:
    """Select the rows with this value of an axis.

    Raises:
        ConfigError: The axis is not a column of a curve or DEVICE, no row has the value, or other columns
            vary with it.
    """
    if axis not in (*CURVE, DEVICE):
        raise ConfigError(f"--axis {axis} is no choice of a curve; one of {', '.join((*CURVE, DEVICE))}")
    found = [row for row in rows if str(row.get(axis)) == value]
    if not found:
        values = ", ".join(dict.fromkeys(str(row.get(axis)) for row in rows))
        raise ConfigError(f"{axis}={value} was not measured; there is {values}")
    for column in TOGETHER.get(axis, ()):
        held = list(dict.fromkeys(str(get_value(row, column)) for row in found))
        if len(held) > 1:
            raise ConfigError(
                f"{axis}={value} was measured with several values of {column} ({', '.join(held)}), "
                f"so it is not one thing to compare; name a sweep with one of them, or --axis {column}"
            )
    return found


def check_machines(baseline: Sequence[Row], candidate: Sequence[Row]) -> None:
    """Check that the timed rows of both come from one kind of GPU under one driver.

    Raises:
        ConfigError: They do not.
    """
    for column in _SAME_MACHINE:
        held = [{row.get(column) for row in rows if row["status"] == "ok"} for rows in (baseline, candidate)]
        if all(held) and (held[0] != held[1] or len(held[0]) > 1):
            first, second = (", ".join(sorted(map(str, values))) for values in held)
            raise ConfigError(
                f"the baseline's {column} is {first} and the candidate's {second}, so their latencies "
                "are not comparable; --across compares them all the same"
            )


def check_cases(baseline: Sequence[Row], cases: Sequence[Case]) -> None:
    """Check that the baseline has a row of some of these cases, on any of a machine's devices.

    Raises:
        ConfigError: It has none.
    """
    columns = [column for column in CASE if column != "device"]
    measured = group_rows(baseline, columns)
    asked = {get_values(case.columns(), columns) for case in cases}
    if not asked & set(measured):
        raise ConfigError(_NONE_SHARED + _list_differences(columns, measured, asked))


def _list_differences(columns: Sequence[str], baseline: Collection[Key], candidate: Collection[Key]) -> str:
    """List the columns and the options in which the two have no value in common; empty where there is none.

    An option that one of them does not have differs with the choice that it is of.
    """
    before, now = (_collect_values(columns, side) for side in (baseline, candidate))
    differences = [
        f"; {name} is {', '.join(before[name])} in the baseline and {', '.join(now[name])} in the candidate"
        for name in before
        if name in now and not set(before[name]) & set(now[name])
    ]
    return "".join(differences)


def _collect_values(columns: Sequence[str], keys: Collection[Key]) -> dict[str, dict[str, None]]:
    """Collect the values of each column, and of each option, such as `timer.cache`, in words."""
    found: dict[str, dict[str, None]] = {}
    for key in keys:
        values = dict(zip(columns, key, strict=True))
        for group in OPTIONS:
            own = read_options(values, group)
            values |= {f"{group}.{option}": value for option, value in own.items()}
            values.pop(f"{group}_options", None)
        for name, value in values.items():
            found.setdefault(name, {})[str(value)] = None
    return found


def _has_several_devices(rows: Sequence[Row]) -> bool:
    return len({row.get("device") for row in rows if is_right(row["status"])}) > 1


def _select_gpu(baseline: Sequence[Row], candidate: Sequence[Row]) -> Sequence[Row]:
    """Select the baseline's rows of the candidate's kind of GPU; all unless the candidate has one kind."""
    names = {row.get("device_name") for row in candidate if row["status"] == "ok"}
    own = [row for row in baseline if row.get("device_name") in names]
    return own if len(names) == 1 and own else baseline


def label_cases(rows: Sequence[Row], columns: Sequence[str]) -> dict[Key, str]:
    """Label each case, without the columns in which the two sides may differ."""
    # Without the workload's name: a sweep that spells out the sizes of one measures the same case.
    alike = [{column: row[column] for column in columns if column in row} | {"workload": ""} for row in rows]
    grouped = group_by_curve(alike)
    names = label_curves(grouped)
    if len(grouped) == 1:
        words = (format_column(grouped[0][0], column) for column in CURVE[:3] if column in columns)
        names = [" ".join(words)]
    return {
        get_values(row, columns): name for name, curve in zip(names, grouped, strict=True) for row in curve
    }


def compare_point(
    label: str,
    baseline: Sequence[Row],
    candidate: Sequence[Row],
    tolerance: float | None,
    *,
    compares_gpus: bool = False,
    in_one_sweep: bool = False,
) -> Point | None:
    """Compare one case; return None where neither side could measure it.

    Where it `compares_gpus`, the difference of equal GPUs is what is asked, and not allowed for.
    """
    size = (*baseline, *candidate)[0]["num_tokens"]
    before, now = ([row for row in side if row["status"] == "ok"] for side in (baseline, candidate))

    def make(word: str, note: str = "", verdict: Verdict | None = None) -> Point:
        both = latencies(before, now, in_one_sweep=in_one_sweep)
        return Point(label, size, word, *both, verdict, note)

    wrong = [row for row in candidate if is_wrong(row["status"])]
    if wrong:
        return make("broken", _format_reason(wrong[0]))
    untimed = [row for row in candidate if row["status"] != "ok"]
    if before and now and untimed:
        how_many = f"in {len(untimed)} of {len(candidate)} processes"
        return make("missing", f"{how_many} {_format_reason(untimed[0])}")
    if before and now:
        gpus = 0.0 if compares_gpus else between_gpus(before, now)
        verdict = judge_processes(before, now, tolerance, gpus, in_one_sweep=in_one_sweep)
        several = f"{len(before)} and {len(now)} processes" if len(before) != len(now) else ""
        return make(verdict.word, ", ".join(filter(None, [several, "another GPU" if gpus else ""])), verdict)
    was_right, now_right = (any(is_right(row["status"]) for row in side) for side in (baseline, candidate))
    if before or (was_right and not now_right):
        return make("missing", _format_reason(candidate[0]) if candidate else "not in the candidate")
    if now or (now_right and not was_right):
        return make("new")
    return make("same", "verified, not timed") if now_right else None


def _format_reason(row: Row) -> str:
    return f"{row['status']}: {row['reason']}"


def _rank(point: Point) -> tuple[int, float, str, int]:
    ratio = point.verdict.ratio if point.verdict else 0
    return WORST_FIRST.index(point.word), -ratio, point.label, point.num_tokens
