"""The views that a store brings for MLflow's UI; tests/browser looks at them through a browser."""

import base64
import json
import zlib

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


def test_a_page_names_the_experiment_the_view_and_the_kind_of_work():
    assert ui_views.page_path("7") == (
        "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=kvexp-last"
    )
