"""Two sets of rows, point by point: what became faster, slower, broken or missing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kvexp.case import Case
from kvexp.errors import ConfigError
from kvexp.measurement import is_right, is_wrong
from kvexp.results.load import TOGETHER
from kvexp.results.rows import CURVE, curves, labels, word
from kvexp.results.verdict import Verdict, between_gpus, judge_processes, latencies

Row = Mapping[str, Any]
Key = tuple[Any, ...]

WORST_FIRST = ("broken", "missing", "slower", "ambiguous", "new", "same", "faster")
"""Every verdict.

`broken`: the candidate is wrong or fails. `missing`: only the baseline was measured, or a process of the
candidate did not time what the baseline's did.
"""

_CASE = tuple(column.name for column in fields(Case) if column.compare)
_NONE_SHARED = "the two share no case: nothing is measured in both with equal choices and sizes"
_SAME_MACHINE = ("device_name", "driver")


@dataclass(frozen=True)
class Point:
    """One point of both.

    Attributes:
        label: Its curve's name.
        num_tokens: Its size.
        word: One of WORST_FIRST.
        baseline_us: The baseline's latency, see `verdict.latencies`; None where no process timed it.
        candidate_us: The same for the candidate's.
        verdict: The ratio and its interval, where both have a latency.
        note: Why it is broken or missing, in the row's words; or how many processes each side has where they
            differ, and that another GPU measured the candidate.
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
    apart: Sequence[str] = (),
    across: bool = False,
    tolerance: float | None = None,
) -> list[Point]:
    """Every point of either, the worst first.

    A baseline of several GPUs is that of the candidate's, where this has one. Which of a machine's equal
    GPUs it was (`cuda:0` or `cuda:1`) does not matter, unless one side was measured on several. Where it was
    another one than the baseline's, the verdict allows for what equal GPUs differ by.

    Args:
        baseline: Rows; those of one case come from different processes.
        candidate: The same.
        apart: Columns of a case in which the two may differ.
        across: Other GPUs and drivers may be compared.
        tolerance: The part by which two processes differ; by default what was measured.

    Raises:
        ConfigError: The two were measured on other GPUs or drivers, share no case, or measured none.
    """
    if not across:
        baseline = _of_its_gpu(baseline, candidate)
        check_machines(baseline, candidate)
    compares_gpus = "device" in apart
    if across or not any(_has_several_devices(rows) for rows in (baseline, candidate)):
        apart = [*apart, "device"]
    columns = [column for column in _CASE if column not in apart]
    sides = [_by_case(rows, columns) for rows in (baseline, candidate)]
    if not set(sides[0]) & set(sides[1]):
        raise ConfigError(_NONE_SHARED + _differing(columns, *sides))
    names = _names([*baseline, *candidate], columns)
    points = [
        _point(names[key], sides[0].get(key, []), sides[1].get(key, []), tolerance, compares_gpus)
        for key in dict.fromkeys([*sides[0], *sides[1]])
    ]
    found = sorted(filter(None, points), key=_badness)
    if not found:
        raise ConfigError("neither of the two measured anything: all that they share was skipped in both")
    return found


def one_of(rows: Sequence[Row], axis: str, value: str) -> list[Row]:
    """The rows that hold this value of an axis.

    Raises:
        ConfigError: The axis is none, no row holds the value, or other columns vary with it.
    """
    if axis not in CURVE:
        raise ConfigError(f"--axis {axis} is no choice of a curve; one of {', '.join(CURVE)}")
    found = [row for row in rows if str(row.get(axis)) == value]
    if not found:
        there = ", ".join(dict.fromkeys(str(row.get(axis)) for row in rows))
        raise ConfigError(f"{axis}={value} was not measured; there is {there}")
    for column in TOGETHER.get(axis, ()):
        held = list(dict.fromkeys(str(row.get(column)) for row in found))
        if len(held) > 1:
            raise ConfigError(
                f"{axis}={value} was measured with several values of {column} ({', '.join(held)}), "
                f"so it is not one thing to compare; name a sweep with one of them, or --axis {column}"
            )
    return found


def check_machines(baseline: Sequence[Row], candidate: Sequence[Row]) -> None:
    """Returns when the timed rows of both come from one kind of GPU under one driver.

    Raises:
        ConfigError: They do not.
    """
    for column in _SAME_MACHINE:
        held = [{row.get(column) for row in rows if row["status"] == "ok"} for rows in (baseline, candidate)]
        if all(held) and (held[0] != held[1] or len(held[0]) > 1):
            first, second = (", ".join(sorted(map(str, values))) for values in held)
            raise ConfigError(
                f"the baseline's {column} is {first} and the candidate's {second}, so their latencies say "
                "nothing of each other; --across compares them all the same"
            )


def check_cases(baseline: Sequence[Row], cases: Sequence[Case]) -> None:
    """Returns when the baseline has a row of some of these cases, on whichever of a machine's devices.

    Raises:
        ConfigError: It has none.
    """
    columns = [column for column in _CASE if column != "device"]
    measured = _by_case(baseline, columns)
    asked = {tuple(getattr(case, column) for column in columns) for case in cases}
    if not asked & set(measured):
        raise ConfigError(_NONE_SHARED + _differing(columns, measured, asked))


def _differing(columns: Sequence[str], baseline: Collection[Key], candidate: Collection[Key]) -> str:
    """The columns of which the two have no value in common, in words; empty where there is none."""
    said: list[str] = []
    if not baseline or not candidate:
        return ""
    for column, before, now in zip(
        columns, zip(*baseline, strict=True), zip(*candidate, strict=True), strict=True
    ):
        if not set(before) & set(now):
            first, second = (", ".join(map(str, dict.fromkeys(values))) for values in (before, now))
            said.append(f"{column} is {first} in the baseline and {second} in the candidate")
    return f"; {'; '.join(said)}" if said else ""


def _has_several_devices(rows: Sequence[Row]) -> bool:
    return len({row.get("device") for row in rows if is_right(row["status"])}) > 1


def _of_its_gpu(baseline: Sequence[Row], candidate: Sequence[Row]) -> Sequence[Row]:
    """The baseline's rows of the candidate's GPU; all of them where that is not one of several."""
    names = {row.get("device_name") for row in candidate if row["status"] == "ok"}
    own = [row for row in baseline if row.get("device_name") in names]
    return own if len(names) == 1 and own else baseline


def _by_case(rows: Sequence[Row], columns: Sequence[str]) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(column) for column in columns), []).append(row)
    return found


def _names(rows: Sequence[Row], columns: Sequence[str]) -> dict[Key, str]:
    """A label for each case, without the columns that may differ between the two."""
    # The workload is a label; a sweep that repeats one by its sizes is the same case without it.
    alike = [{column: row[column] for column in columns if column in row} | {"workload": ""} for row in rows]
    grouped = curves(alike)
    named = labels(grouped)
    if len(grouped) == 1:
        words = (word(grouped[0][0], column) for column in CURVE[:3] if column in columns)
        named = [" ".join(words)]
    return {
        tuple(row.get(column) for column in columns): name
        for name, curve in zip(named, grouped, strict=True)
        for row in curve
    }


def _point(
    label: str,
    baseline: Sequence[Row],
    candidate: Sequence[Row],
    tolerance: float | None,
    compares_gpus: bool,
) -> Point | None:
    """The verdict on one case; None where there is nothing to say: neither side could measure it."""
    size = (*baseline, *candidate)[0]["num_tokens"]
    before, now = ([row for row in side if row["status"] == "ok"] for side in (baseline, candidate))
    wrong = [row for row in candidate if is_wrong(row["status"])]
    untimed = [row for row in candidate if row["status"] != "ok"]
    was_right, now_right = (any(is_right(row["status"]) for row in side) for side in (baseline, candidate))
    verdict, gpus = None, 0.0
    if before and now and not untimed:
        gpus = 0.0 if compares_gpus else between_gpus(before, now)
        verdict = judge_processes(before, now, tolerance, gpus)
    found, note = "", ""
    if wrong:
        found, note = "broken", _why(wrong[0])
    elif verdict:
        found = verdict.word
        several = f"{len(before)} and {len(now)} processes" if len(before) != len(now) else ""
        note = ", ".join(filter(None, [several, "another GPU" if gpus else ""]))
    elif before and now:
        found, note = "missing", f"in {len(untimed)} of {len(candidate)} processes {_why(untimed[0])}"
    elif before or (was_right and not now_right):
        found, note = "missing", _why(candidate[0]) if candidate else "not in the candidate"
    elif now or (now_right and not was_right):
        found = "new"
    elif now_right:
        found, note = "same", "verified, not timed"
    return Point(label, size, found, *latencies(before, now), verdict, note) if found else None


def _why(row: Row) -> str:
    return f"{row['status']}: {row['reason']}"


def _badness(point: Point) -> tuple[int, float, str, int]:
    ratio = point.verdict.ratio if point.verdict else 0
    return WORST_FIRST.index(point.word), -ratio, point.label, point.num_tokens
