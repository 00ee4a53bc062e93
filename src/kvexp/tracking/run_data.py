"""Turn a curve's rows into the data of an MLflow run: name, params, tags, metrics by step, summary scalars.

Params are the case, tags the machine and the outcome, metrics the measurement. This imports no MLflow.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from kvexp.measurement import COLUMNS, ENVIRONMENT, SECONDS, STATUSES, Row
from kvexp.report.format import join_words, tokens
from kvexp.results.labels import CURVE, label_curves, read_options
from kvexp.results.merge import merge_disturbances
from kvexp.results.point_identity import REPETITION, get_repetition

_METRICS = tuple(name for name, column in COLUMNS.items() if column.metric)
_NOT_ENVIRONMENT = set(COLUMNS) - {*ENVIRONMENT, "impl_hash"}
_TOKENS = (1, 64, 4096)
NOTE = "mlflow.note.content"
"""MLflow's tag of a run's description."""
LATENCIES = tuple(f"latency_us_at_{tokens}_tokens" for tokens in (*_TOKENS, "max"))
"""Scalars for the table of runs: the latency at some num_tokens, where a curve has them, and at its last."""
_DIGITS = 5  # of a scalar; its row has all of them
# MLflow's stores refuse longer values, of params and of tags, some from 5000 characters on, and longer names.
_LONGEST_TEXT, _LONGEST_NAME = 5000, 250


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    timestamp_ms: int
    step: int


def name(row: Row) -> str:
    """Name the run as its sweep has named the curve of the row."""
    again = [f"#{get_repetition(row)}"] if get_repetition(row) > 1 else []
    return fit({"": " ".join([*label_curves([[row]]), *again])})[""][:_LONGEST_NAME]


def params(row: Row) -> dict[str, str]:
    """Return the case's columns that are fixed along the curve, as text.

    Each implementation option is a param: MLflow's comparison draws the first three params that differ,
    by name, and one param with the JSON of all options would displace the layout.
    """
    columns = (*(column for column in CURVE if column != "impl_options"), "layout_reason", REPETITION)
    found = {column: str(row[column]) for column in columns if row.get(column) not in (None, "")}
    return fit(found | {f"option.{name}": str(value) for name, value in read_options(row, "impl").items()})


def tags(rows: Sequence[Row]) -> dict[str, str]:
    """Return the outcome of the whole curve, what disturbed it, and the environment's columns."""
    reasons = {row.get("reason") for row in rows}
    reason = reasons.pop() if len(reasons) == 1 else None
    disturbances = {column: str(value) for column, value in merge_disturbances(rows).items()}
    contracts = dict.fromkeys(row["contract"] for row in rows if row.get("contract"))
    found = {"status": status(rows), "reason": reason or "", "contract": "; ".join(contracts)}
    found |= {"curve": label_curves([rows])[0], NOTE: describe(rows)}
    return fit(found | disturbances | environment(rows))


def describe(rows: Sequence[Row]) -> str:
    """Describe the curve in a sentence or two, of the numbers that its metrics have."""
    seen = Counter(row["status"] for row in rows)
    sentences = [f"Points: {join_words([f'{seen[word]} {word}' for word in STATUSES if seen[word]])}."]
    ok = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["num_tokens"])
    if ok:
        ends = [f"{row['latency_us']:.4g} µs at {tokens(row['num_tokens'])}" for row in (ok[0], ok[-1])]
        sentences.append(f"Latency: {' to '.join(dict.fromkeys(ends))}.")
    if best := max((row["copy_fraction"] for row in ok if row.get("copy_fraction")), default=0):
        sentences.append(f"Best share of an equal copy's speed: {100 * best:.0f} %.")
    if number := rows[0].get(REPETITION):
        sentences.append(f"Measured by process {number} of its curve.")
    return " ".join(sentences)


def environment(rows: Sequence[Row]) -> dict[str, str]:
    """Return every other column that has one plain value along the curve."""
    found = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        values = [row[column] for row in rows if row.get(column) is not None]
        if column in _NOT_ENVIRONMENT or not values or any(value != values[0] for value in values):
            continue
        found[column] = str(values[0]).lower() if isinstance(values[0], bool) else str(values[0])
    return fit(found)


def fit(texts: Mapping[str, str]) -> dict[str, str]:
    """Cut texts to what every store takes, replace characters that none takes, and leave out empty ones.

    The artifacts have the whole text.
    """
    valid = {key: text.encode("utf-8", "replace").decode().replace("\0", "?") for key, text in texts.items()}
    return {key: text[:_LONGEST_TEXT] for key, text in valid.items() if text}


def status(rows: Sequence[Row]) -> str:
    """Return the status of the whole curve: the worst if a point is wrong, else the best."""
    seen = {row["status"] for row in rows}
    order = ("incorrect", "failed", "ok", "verified", "skipped")
    return next((word for word in order if word in seen), "failed")


def counts(rows: Sequence[Row]) -> dict[str, float]:
    """Count the points by status, as `points_ok` and so on, zeros included."""
    found = Counter(row["status"] for row in rows)
    return {f"points_{status}": float(found[status]) for status in STATUSES}


def metrics(rows: Sequence[Row]) -> Iterator[Point]:
    """Yield the metrics of the `ok` rows at step num_tokens; other points have no value."""
    for row in rows:
        if row["status"] != "ok":
            continue
        at = milliseconds(row)
        for key in _METRICS:
            if row.get(key) is not None:
                yield Point(key, float(row[key]), at, row["num_tokens"])


def scalars(rows: Sequence[Row]) -> dict[str, float]:
    """Return the numbers of a whole curve for the table of runs."""
    ok = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["num_tokens"])
    latencies = {str(row["num_tokens"]): row["latency_us"] for row in ok if row["num_tokens"] in _TOKENS}
    if ok:
        latencies |= {"min": ok[0]["latency_us"], "max": ok[-1]["latency_us"]}
    seen = {f"latency_us_at_{tokens}_tokens": latency for tokens, latency in latencies.items()}
    for key, column in (("peak_gb_per_s", "gb_per_s"), ("best_copy_fraction", "copy_fraction")):
        if values := [row[column] for row in ok if row.get(column) is not None]:
            seen[key] = max(values)
    return {key: float(f"{value:.{_DIGITS}g}") for key, value in seen.items()} | counts(rows)


def milliseconds(row: Mapping[str, Any]) -> int:
    """Return when the point was started, in milliseconds since 1970; now, where the row does not say."""
    started_at = row.get("started_at")
    moment = datetime.fromisoformat(started_at).timestamp() if started_at else time.time()
    return int(moment * 1000)


def ended_ms(rows: Sequence[Row]) -> int:
    """Return when the last point ended, in milliseconds since 1970, as far as its parts' times are known."""
    parts = [part for part in SECONDS if part != "curve_setup_s"]  # the set-up is before the first point
    return max(milliseconds(row) + round(1000 * sum(row.get(part) or 0 for part in parts)) for row in rows)
