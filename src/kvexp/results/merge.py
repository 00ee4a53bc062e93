"""Merge the rows of a point's repetitions into one."""

from collections.abc import Iterable, Sequence
from typing import Any

from kvexp.measurement import Row, is_wrong
from kvexp.results.labels import group_rows
from kvexp.results.load import SWEEP
from kvexp.results.point_identity import REPETITION, WITHOUT_KERNEL, get_repetition
from kvexp.results.verdict import interval

PROCESSES, LATENCIES, INTERVALS, GPUS = "processes", "latencies_us", "intervals_us", "gpus"
"""The columns of a merged row that say how many processes timed the point, and each one's latency in µs, its
interval, and its GPU's UUID, in the order of the rounds.
"""
_POINT = (SWEEP, *(column for column in WITHOUT_KERNEL if column != "device_uuid"))


def merge_repetitions(rows: Sequence[Row]) -> list[Row]:
    """Merge the repetitions of each point: a wrong row if there is one, else the row of median latency.

    Of an even number of latencies the faster middle one counts, and of a kernel that was changed between
    repetitions its last state. A merged row has no repetition of its own. It holds how many PROCESSES timed
    the point, their LATENCIES, INTERVALS and GPUS, and the disturbances of all of them.
    """
    return [_merge_point(own) for own in group_rows(rows, _POINT).values()]


def _merge_point(rows: Sequence[Row]) -> Row:
    wrong = [row for row in rows if is_wrong(row["status"])]
    timed = _select_timed(rows)
    by_latency = sorted(timed, key=lambda row: row["latency_us"])
    chosen = [*wrong, *by_latency[(len(timed) - 1) // 2 :], *rows][0]
    return (
        {column: value for column, value in chosen.items() if column != REPETITION}
        | {PROCESSES: len(timed), LATENCIES: tuple(row["latency_us"] for row in timed)}
        | {INTERVALS: tuple(map(interval, timed)), GPUS: tuple(row.get("device_uuid") for row in timed)}
        | merge_disturbances(rows)
    )


def merge_disturbances(rows: Iterable[Row]) -> dict[str, Any]:
    """Return `throttled` with every reason of any row, and the most `other_processes`; without empty ones."""
    found = list(rows)
    reasons = [word for row in found for word in (row.get("throttled") or "").split(", ") if word]
    others = max((row.get("other_processes") or 0 for row in found), default=0)
    merged = {"throttled": ", ".join(dict.fromkeys(reasons)), "other_processes": others}
    return {column: value for column, value in merged.items() if value}


def _select_timed(rows: Sequence[Row]) -> list[Row]:
    """Select the `ok` rows of the kernel's last state, in the order of the rounds."""
    timed = [row for row in rows if row["status"] == "ok"]
    last = [row for row in timed if row.get("impl_hash") == timed[-1].get("impl_hash")]
    return sorted(last, key=get_repetition)
