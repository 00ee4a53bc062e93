"""What MLflow's UI shows without set-up: views of an experiment, each with its runs, columns and charts.

A view is a tag of the experiment, in the form in which MLflow 3.17's UI keeps the views that people save: its
menu `Views` lists it, and an address can name it. Nothing here imports MLflow.
"""

import base64
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvexp.measurement import STATUSES
from kvexp.results.sweep_dir import is_id
from kvexp.tracking.run_data import LATENCIES

LAST = "kvexp-last"
"""The view of the newest sweep's curves, the fastest first."""
TAG = "mlflow.sharedViewState."
"""What the names of the tags begin with that hold views."""

_DESCRIPTION = (
    "A run is a curve: one kernel's latency against num_tokens, which is the step of its metrics. Its parent "
    "is the sweep, which has the report. **Views**, above, shows the runs with their columns and charts."
)
_WIDTHS = {"Run Name": 270, "command": 400, "device_name": 160, "dtype": 80, "mode": 85}
_LETTER_PX, _MARGIN_PX = 6.5, 25  # of a column's heading


@dataclass(frozen=True)
class View:
    """A view.

    Attributes:
        key: What addresses call it.
        name: What the menu calls it.
        where: Which runs it shows, in MLflow's words.
        order: By what they are sorted. By their start, MLflow would fold the curves up below their sweeps.
        ascending: Whether the smallest comes first.
        columns: What it shows of them.
    """

    key: str
    name: str
    where: str
    order: str
    ascending: bool
    columns: Sequence[str]

    def tag(self, made_ms: int) -> tuple[str, str]:
        """The name and the value of the tag that holds it, made at that many milliseconds since 1970."""
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
            "compareRunSections": [_SECTION, *map(_others, ("Model metrics", "System metrics"))],
            "compareRunCharts": _CHARTS,
        }
        packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        view = {"name": self.name, "createdAt": made_ms, "state": f"deflate;{packed}"}
        return TAG + self.key, json.dumps(view)


def of_sweep(sweep_id: str) -> str:
    """Which runs are the sweep's, in MLflow's words; of one without an id also others of its name."""
    if is_id(sweep_id):
        return f"tags.`kvexp.sweep_id` = '{sweep_id}'"
    # MLflow's texts know no escaping: whatever could end one early stands for any letter.
    pattern = re.sub(r"[^\w/.: -]", "_", sweep_id)
    return f"tags.`kvexp.sweep` LIKE '{pattern}'"


def last(sweep_id: str) -> View:
    """The view of the newest sweep, which is this one."""
    where = f"{of_sweep(sweep_id)} and {_WHOLE}"
    return View(LAST, "Last sweep", where, "metrics.`latency_us_at_max_tokens`", True, _CURVE)


def tags(made_ms: int) -> dict[str, str]:
    """The tags of an experiment that was made then, in milliseconds since 1970, and has no sweep as yet."""
    views = (
        last(""),
        View("kvexp-curves", "All curves", _WHOLE, "tags.`kvexp.curve`", False, _CURVE),
        View("kvexp-sweeps", "Sweeps", "tags.command LIKE '%'", "attributes.start_time", False, _SWEEP),
    )
    return {
        # Earlier UIs go by it, that of 3.17 by a page's address and by what was chosen last in the browser.
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": _DESCRIPTION,
        **dict(view.tag(made_ms) for view in views),
    }


def page(experiment_id: str) -> str:
    """The path of the newest sweep's page in MLflow's UI."""
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
    """A metric against num_tokens, both logarithmic."""
    x = {"xAxisKey": "step", "xAxisScaleType": "log", "useGlobalXaxisKey": False}
    return _chart(
        metric, "LINE", metricKey=metric, selectedMetricKeys=[metric], scaleType="log", lineSmoothness=0, **x
    )


def _others(name: str) -> dict[str, Any]:
    """A section in which the UI puts every other metric, folded up."""
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
_CHARTS = [
    _line("latency_us"),
    _line("copy_fraction"),
    _line("gb_per_s"),
    _chart(
        "parallel",
        "PARALLEL",
        selectedParams=["impl", "layout", "dtype", "kv_cache_dtype", "mode"],
        selectedMetrics=["latency_us"],
        showAllRuns=False,
    ),
]
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
