"""Views of an experiment for MLflow's UI, each with its runs, columns and charts.

A view is a tag of the experiment, in the format of the views that people save in MLflow 3.17's UI: its menu
`Views` lists it, and an address can name it. This imports no MLflow.
"""

import base64
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvexp.measurement import STATUSES
from kvexp.results.point_identity import REPETITION
from kvexp.results.sweep_dir import is_id
from kvexp.tracking.run_data import LATENCIES

LAST = "kvexp-last"
"""The view of the last sweep's curves, the fastest first."""
TAG = "mlflow.sharedViewState."
"""The prefix of the tags that hold views."""

_DESCRIPTION = (
    "A run is a curve: one kernel's latency against num_tokens, which is the step of its metrics. Its parent "
    "is the sweep, which has the report. **Views**, above, shows the runs with their columns and charts."
)
_WIDTHS = {"Run Name": 270, "command": 400, "device_name": 160, "dtype": 80, "mode": 85}
_CHOICES = ("impl", "layout", "dtype", "kv_cache_dtype", "mode")
"""The axes of parallel coordinates over many sweeps."""
_LETTER_PX, _MARGIN_PX = 6.5, 25  # of a column's heading


@dataclass(frozen=True)
class View:
    """A view.

    Attributes:
        key: Its name in addresses.
        name: Its name in the menu.
        where: MLflow's filter for the runs that it shows.
        order: The column by which they are sorted. By start time, MLflow would collapse curves below sweeps.
        ascending: Whether the smallest comes first.
        columns: The columns that it shows.
        axes: The params of the parallel coordinates.
        grouped: Whether the runs of one curve, which several processes measured, are a group.
    """

    key: str
    name: str
    where: str
    order: str
    ascending: bool
    columns: Sequence[str]
    axes: Sequence[str] = _CHOICES
    grouped: bool = False

    def to_tag(self, made_ms: int) -> tuple[str, str]:
        """Return the name and the value of its tag, created at that many milliseconds since 1970."""
        columns = ["attributes.`Run Name`", *self.columns]
        state = {
            "searchFilter": self.where,
            "orderByKey": self.order,
            "orderByAsc": self.ascending,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": columns,
            "columnOrder": columns,
            "columnWidths": {column: _width(column) for column in columns},
            "runsHiddenMode": "FIRST_20_RUNS",
            "isAccordionReordered": True,
            "compareRunSections": [_SECTION, *map(_fold, ("Model metrics", "System metrics"))],
            "compareRunCharts": [*_LINES, _parallel(self.axes)],
            "groupBy": _BY_CURVE if self.grouped else None,
            "groupsExpanded": {},
            "useGroupedValuesInCharts": self.grouped,
        }
        packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        view = {"name": self.name, "createdAt": made_ms, "state": f"deflate;{packed}"}
        return TAG + self.key, json.dumps(view)


def filter_sweep(sweep_id: str) -> str:
    """Return MLflow's filter for the sweep's runs; without an id it matches every sweep of that name."""
    if is_id(sweep_id):
        return f"tags.`kvexp.sweep_id` = '{sweep_id}'"
    # MLflow's filters have no escapes: a wildcard replaces each character that could end the text.
    pattern = re.sub(r"[^\w/.: -]", "_", sweep_id)
    return f"tags.`kvexp.sweep` LIKE '{pattern}'"


def last_sweep(sweep_id: str, swept: Sequence[str] = (), repeats: bool = False) -> View:
    """Return the view of the last sweep, which is this one.

    Args:
        sweep_id: The sweep's.
        swept: The keys that it swept, as typed: their params come first, and are the axes.
        repeats: Whether several processes measured each curve.
    """
    where = f"{filter_sweep(sweep_id)} and {_WHOLE}"
    axes = list(dict.fromkeys(filter(None, map(_name_param, swept))))
    first = _keys("params", *axes, *([REPETITION] if repeats else []))
    columns = dict.fromkeys((_CURVE[0], *first, *_CURVE))
    order = "metrics.`latency_us_at_max_tokens`"
    return View(LAST, "Last sweep", where, order, True, list(columns), axes or _CHOICES, repeats)


def _name_param(key: str) -> str:
    """Return the param of a curve's run that has the key's value; "" where none has."""
    group, _, name = key.partition(".")
    if group == "workload" and name:
        return "" if name == "num_tokens" else name
    if group in ("op", "timer") and name:
        return f"{group}_options"
    return f"option.{name}" if group == "impl" and name else "" if name else group


def make_tags(made_ms: int) -> dict[str, str]:
    """Make the tags of an experiment without sweeps, created at that many milliseconds since 1970."""
    views = (
        last_sweep(""),
        View("kvexp-curves", "All curves", _WHOLE, "tags.`kvexp.curve`", False, _CURVE),
        View("kvexp-sweeps", "Sweeps", "tags.command LIKE '%'", "attributes.start_time", False, _SWEEP),
    )
    return {
        # For UIs before 3.17, which goes by the page's address and by the last choice in the browser.
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": _DESCRIPTION,
        **dict(view.to_tag(made_ms) for view in views),
    }


def page_path(experiment_id: str) -> str:
    """Return the path of the last sweep's page in MLflow's UI."""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={LAST}"


def _keys(kind: str, *names: str) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]


def _width(column: str) -> int:
    name = column.split("`")[1]
    return _WIDTHS.get(name, round(_LETTER_PX * len(name)) + _MARGIN_PX)


def _chart(name: str, kind: str, **others: Any) -> dict[str, Any]:
    common = {"metricSectionId": _SECTION["uuid"], "runsCountToCompare": 20}
    return {"uuid": f"kvexp-{name}", "type": kind, "deleted": False, "isGenerated": False, **common, **others}


def _line(metric: str) -> dict[str, Any]:
    """Return a chart of a metric against num_tokens, both logarithmic."""
    x = {"xAxisKey": "step", "xAxisScaleType": "log", "useGlobalXaxisKey": False}
    return _chart(
        metric, "LINE", metricKey=metric, selectedMetricKeys=[metric], scaleType="log", lineSmoothness=0, **x
    )


def _parallel(axes: Sequence[str]) -> dict[str, Any]:
    """Return the parallel coordinates of these params and the latency."""
    chosen = {"selectedParams": list(axes), "selectedMetrics": ["latency_us"]}
    return _chart("parallel", "PARALLEL", showAllRuns=False, **chosen)


def _fold(name: str) -> dict[str, Any]:
    """Return a folded section, in which the UI puts every other metric."""
    return {"uuid": name, "name": name, "display": False, "isReordered": False, "isGenerated": True}


_SECTION = {
    "uuid": "kvexp-curves",
    "name": "Curves",
    "display": True,
    "isReordered": True,
    "isGenerated": False,
    "columns": 2,
    "cardHeight": 400,
}
_LINES = [_line("latency_us"), _line("copy_fraction"), _line("gb_per_s")]
_BY_CURVE = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "curve"}]}
_WHOLE = "tags.`kvexp.whole` = 'true'"
_CURVE = (
    *_keys("tags", "status"),
    *_keys("params", "impl", "layout", "dtype", "mode"),
    *_keys("metrics", *LATENCIES, "peak_gb_per_s", "best_copy_fraction"),
    *_keys("params", "kv_cache_dtype", "scale", "workload"),
    *_keys("tags", "device_name", "kvexp.sweep"),
)
_SWEEP = (
    *_keys("tags", "command"),
    *_keys("metrics", *(f"points_{status}" for status in STATUSES)),
    *_keys("tags", "device_name", "host"),
)
