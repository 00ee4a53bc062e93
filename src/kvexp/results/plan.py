"""Write, read and count what each job of a sweep was composed to measure: its curve and its points."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvexp.column import INT64
from kvexp.experiment import MEANING, Experiment
from kvexp.host.plain_file import open_regular
from kvexp.measurement import Row
from kvexp.results import jsonl
from kvexp.results.conf_files import complete_columns
from kvexp.results.labels import CURVE
from kvexp.results.load import SWEEP
from kvexp.results.point_identity import get_value
from kvexp.results.sweep_dir import name_of

PLAN = Path(".hydra") / "plan.json"
"""The file in a job's folder."""
_LARGEST_BYTES = 1 << 20

Curve = tuple[Any, ...]
"""The values of a curve's columns CURVE, which its rows have, too."""


@dataclass(frozen=True)
class Plan:
    """Hold the curve that a job was composed to measure.

    Attributes:
        curve: Its columns CURVE as they were requested, `auto` too.
        num_tokens: Its points.
        repeat: How often each is measured.
    """

    curve: Mapping[str, Any]
    num_tokens: tuple[int, ...]
    repeat: int


def resolve_curve(columns: Mapping[str, Any], has_gpu: bool) -> Curve:
    """Return a plan's or a row's values of CURVE, each `auto` replaced by its meaning on that machine."""
    meaning = MEANING["cpu" if columns.get("device") == "cpu" or not has_gpu else "cuda"]
    values = {column: get_value(columns, column) for column in CURVE}
    return tuple(
        meaning[column] if column in meaning and value in ("auto", "cuda") else value
        for column, value in values.items()
    )


def format_plan(experiment: Experiment, repeat: int) -> str:
    """Return the text of the plan of a job that measures the experiment."""
    case = next(experiment.cases()).columns()
    curve = {column: case[column] for column in CURVE}
    return json.dumps({"curve": curve, "num_tokens": experiment.workload.num_tokens, "repeat": repeat})


def read_plan(job: Path) -> Plan | None:
    """Read the job's plan; None where it has none yet, or the file is not one of `format_plan`."""
    try:
        with open(job / PLAN, "rb", opener=open_regular) as handle:
            content = jsonl.loads(handle.read(_LARGEST_BYTES))
        columns = complete_columns(content["curve"])
        curve = {column: columns[column] for column in CURVE}
        plan = Plan(curve, tuple(content["num_tokens"]), content["repeat"])
        hash((tuple(curve.values()), plan.num_tokens))  # a list or an object is no value of a column
        return plan if 0 < plan.repeat <= INT64 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def merge_plans(plans: Iterable[Plan], has_gpu: bool) -> dict[Curve, dict[int, int]]:
    """Return how often each num_tokens of each curve is measured; jobs of one curve are merged."""
    found: dict[Curve, dict[int, int]] = {}
    for plan in plans:
        points = found.setdefault(resolve_curve(plan.curve, has_gpu), {})
        for num_tokens in plan.num_tokens:
            points[num_tokens] = max(plan.repeat, points.get(num_tokens, 0))
    return found


def is_on_gpu(rows: Iterable[Row]) -> bool:
    """Return whether a row was measured on a GPU."""
    return any(str(row.get("device")).startswith("cuda") for row in rows)


def count_planned(paths: Sequence[Path], rows: Sequence[Row]) -> int:
    """Count the points that the jobs below these folders, or of these files, were composed to measure.

    The rows, each with its sweep, say where `auto` was a GPU.
    """
    patterns = [(path, "**/") if path.is_dir() else (path.parent, "") for path in paths]
    files = (file for folder, below in patterns for file in folder.glob(f"{below}{PLAN}"))
    of_sweeps: dict[Path, list[Plan]] = {}
    for job in {file.resolve().parents[1] for file in files}:
        if plan := read_plan(job):
            of_sweeps.setdefault(job.parent, []).append(plan)
    total = 0
    for home, plans in of_sweeps.items():
        has_gpu = is_on_gpu(row for row in rows if row[SWEEP] == name_of(home))
        total += sum(map(len, merge_plans(plans, has_gpu).values()))
    return total
