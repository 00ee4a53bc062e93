"""The views that a store brings for MLflow's UI; tests/browser looks at them through a browser."""

import base64
import json
import zlib
from importlib.metadata import entry_points

import mlflow.server.fastapi_app
import pytest

from kvexp.tracking import TrackingSettings, connect, sqlite, ui_views


def state(value):
    """What the UI reads out of a view's tag."""
    kind, _, packed = json.loads(value)["state"].partition(";")
    assert kind == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


@pytest.fixture
def tags(client):
    """The tags of an experiment, read anew."""
    return lambda name="kvexp": client.get_experiment_by_name(name).tags


def test_an_experiment_has_its_views_and_is_none_of_genai(tracker, tags):
    found = {key.removeprefix(ui_views.TAG): value for key, value in tags().items()}
    names = {json.loads(found[key])["name"] for key in ("kvexp-last", "kvexp-curves", "kvexp-sweeps")}
    assert names == {"Last sweep", "All curves", "Sweeps"}
    assert found["mlflow.experimentKind"] == "custom_model_development"
    assert "num_tokens" in found["mlflow.note.content"]


def test_no_view_is_longer_than_a_tag_may_be():
    assert max(map(len, ui_views.make_tags(0).values())) < 5000


def test_the_columns_are_params_tags_and_metrics_that_curves_have(stored, measure, tags):
    _, child = stored("viewed", measure())
    has = {f"params.`{name}`" for name in child.data.params}
    has |= {f"metrics.`{name}`" for name in child.data.metrics}
    has |= {f"tags.`{name}`" for name in child.data.tags} | {"attributes.`Run Name`"}
    shown = state(tags()[ui_views.TAG + ui_views.LAST])["selectedColumns"]
    assert set(shown) - has == {"metrics.`latency_us_at_1_tokens`"}  # the curve begins at two tokens


def test_what_was_swept_comes_first_and_makes_the_axes_and_processes_of_a_curve_are_grouped():
    swept = [
        "workload.num_heads",
        "impl.threads",
        "timer.inputs",
        "op.scale_fmt",
        "scale.factor",
        "layout",
        "workload.num_tokens",
    ]
    _, value = ui_views.last_sweep("one", swept, repeats=True).to_tag(0)
    found = state(value)
    axes = ["num_heads", "option.threads", "timer_options", "op_options", "layout"]
    first = [
        "attributes.`Run Name`",
        "tags.`status`",
        *(f"params.`{name}`" for name in [*axes, "repetition"]),
    ]
    assert found["selectedColumns"][: len(first)] == first
    assert len(found["selectedColumns"]) == len({*found["selectedColumns"]})
    (parallel,) = (chart for chart in found["compareRunCharts"] if chart["type"] == "PARALLEL")
    assert parallel["selectedParams"] == axes
    assert found["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "curve"}]
    assert len(value) < 5000
    assert state(ui_views.last_sweep("one").to_tag(0)[1])["groupBy"] is None


def test_a_sweep_that_repeats_its_curves_has_them_grouped(tracker, job, measure, experiment, tags):
    tracker.start_sweep("repeated", "")
    assert state(tags()[ui_views.TAG + ui_views.LAST])["groupBy"] is None
    rows = measure(repetition=1)
    tracker.log_curve(job(rows), experiment.impl.target, rows)
    assert state(tags()[ui_views.TAG + ui_views.LAST])["groupBy"]


def test_the_newest_sweeps_view_is_the_one_that_was_started_last(tracker, tags):
    for sweep_id in ("first", "second"):
        tracker.start_sweep(sweep_id, "")
    connected_again = tags()[ui_views.TAG + ui_views.LAST]
    assert "'second'" in state(connected_again)["searchFilter"]


def test_what_a_person_wrote_and_chose_stays(store, client, tags):
    named = TrackingSettings("local", store.uri, "described")
    made = client.create_experiment("described", tags={"mlflow.note.content": "Mine."})
    connect(named).start_sweep("kept", "")
    connect(named)
    assert tags("described")["mlflow.note.content"] == "Mine."
    assert "'kept'" in state(tags("described")[ui_views.TAG + ui_views.LAST])["searchFilter"]
    file = store.uri.removeprefix("sqlite:///")
    assert sqlite.find_experiments(sqlite.Path(file), ui_views.TAG + ui_views.LAST)["described"] == made


def test_the_served_page_chooses_model_training_and_nothing_else_is_touched():
    (found,) = entry_points(group="mlflow.app", name="kvexp")
    assert found.load() is mlflow.server.fastapi_app.app
    client = mlflow.server.app.test_client()
    page, version = client.get("/"), client.get("/version")
    assert page.text.count("mlflow.workflowType_v1") == 2  # read, and set where nobody has chosen
    assert page.text.index("mlflow.workflowType_v1") < page.text.index("<script defer")
    assert version.text == mlflow.__version__


def test_a_page_names_the_experiment_the_view_and_the_kind_of_work():
    assert ui_views.page_path("7") == (
        "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=kvexp-last"
    )
