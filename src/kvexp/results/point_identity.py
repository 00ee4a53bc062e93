"""Which point a row is of: what resume, the newest of several attempts and repetitions are decided by."""

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from kvexp.case import Case
from kvexp.experiment import MEANING
from kvexp.measurement import Row
from kvexp.timer.stopping_criterion import StoppingCriterion

CASE = tuple(column.name for column in fields(Case) if column.compare)
"""The columns that say what was measured."""
IDENTITY = (*CASE, "impl_hash", "device_name", "device_uuid", "driver", "torch", "triton")
"""The columns that say which point a row is of: what was measured, and what can change its outcome."""
Identity = tuple[Any, ...]
WITHOUT_KERNEL = ("workload", *(column for column in IDENTITY if column != "impl_hash"))
"""Equal for all attempts at a point, also with a kernel that was changed between them."""
_CHOSEN = ("workload", *(column for column in CASE if column not in MEANING["cpu"]))
"""The columns of a point that no machine resolves."""
REPETITION = "repetition"
"""The column that counts the processes which measured one point, from 1 on; it changes no outcome."""
_TIMER_OPTIONS = "timer_options"
_SAMPLING = frozenset(option.name for option in fields(StoppingCriterion))
"""The timer's options that say how long to sample, and not what is timed."""


def get_values(row: Mapping[str, Any], columns: Iterable[str]) -> Identity:
    """Return the row's values of these columns, as points are told apart by them.

    How long a point was sampled says how sure its latency is, and is no part of what was measured: the
    timer's options are without it.
    """
    return tuple(get_value(row, column) for column in columns)


def get_value(row: Mapping[str, Any], column: str) -> Any:
    """Return one value as `get_values` does."""
    value = row.get(column)
    return _drop_sampling(value) if column == _TIMER_OPTIONS and value else value


def identify(row: Row) -> Identity:
    """Return the row's values of IDENTITY: equal where nothing that can change the outcome differs."""
    return get_values(row, IDENTITY)


def identify_in_workload(row: Row) -> Identity:
    """Return the row's workload and identity: a sweep does not measure again what is right under these."""
    return (row.get("workload"), *identify(row))


def identify_on_any_gpu(row: Row) -> Identity:
    """Return the row's workload and identity without its GPU's UUID, for a sweep that uses several GPUs."""
    return identify_in_workload({**row, "device_uuid": None})


def get_repetition(row: Row) -> int:
    """Return the number of the process that measured the row; 1 where the row has none."""
    return int(row.get(REPETITION) or 1)


def select_newest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select the last row of each point and repetition, in the order of the first attempts.

    A kernel that was changed between two attempts leaves one row, that of its last state. Points whose
    workloads differ in name alone are two. A row without a device (its process ended before it had one) is
    left out where its point has a row with one.
    """
    found = list({(get_repetition(row), *get_values(row, WITHOUT_KERNEL)): row for row in rows}.values())
    named: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        if row.get("device_name") is not None:
            named.setdefault(_get_requested(row), []).append(row)
    return [
        row
        for row in found
        if row.get("device_name") is not None
        or not any(_resolves_to(row, other) for other in named.get(_get_requested(row), ()))
    ]


def _get_requested(row: Row) -> tuple[Any, ...]:
    """Return what was requested, without the columns that a machine resolves."""
    return (get_repetition(row), *get_values(row, _CHOSEN))


def _resolves_to(nameless: Row, other: Row) -> bool:
    """Return whether the first row's device, mode and timer, which may be `auto`, resolve to the other's."""
    meant = MEANING["cpu" if nameless.get("device") == "cpu" else "cuda"]
    return all(
        other.get(column) == (meaning if nameless.get(column) in ("auto", "cuda") else nameless.get(column))
        for column, meaning in meant.items()
    )


@functools.lru_cache(1024)
def _drop_sampling(options: str) -> str:
    kept = {option: value for option, value in json.loads(options).items() if option not in _SAMPLING}
    return json.dumps(kept, sort_keys=True)
