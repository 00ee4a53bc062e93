import json
from dataclasses import fields, replace

import pytest

from kvexp.experiment import Choice, Experiment, WorkloadSpec
from tests.helpers import compose


@pytest.fixture
def curve():
    return compose.experiment("impl=torch", "workload=tiny", "kv_cache_dtype=fp8", "timer.max_samples=77")


GROUPS = ("op", "impl", "layout", "dtype", "kv_cache_dtype", "scale", "mode", "timer", "workload")


@pytest.mark.parametrize("group", GROUPS)
def test_the_measuring_process_gets_what_was_composed(curve, group):
    option = compose.options(group)[-1]
    made = replace(curve, **{group: compose.choice(group, option)}, layout_reason=f"for {option}")
    line = made.to_json()
    assert "\n" not in line
    assert Experiment.from_json(line) == made
    assert Experiment.from_json(line).to_json() == line


def test_every_kind_of_option_survives_json(curve):
    options = {"a": 1, "b": 2.5, "c": "three", "d": True, "e": None}
    made = replace(curve, impl=replace(curve.impl, options=options))
    assert Experiment.from_json(made.to_json()).impl.options == options


class TestResolved:
    @pytest.mark.parametrize(
        ("device", "mode", "timer"),
        [("cuda:0", "cudagraph", "cuda_event"), ("cuda:3", "cudagraph", "cuda_event"),
         ("cpu", "no_graph", "wall_clock")],
    )  # fmt: skip
    def test_auto_is_what_the_device_has(self, curve, device, mode, timer):
        found = curve.resolve(device)
        assert (found.device, found.mode.name, found.timer.name) == (device, mode, timer)
        assert found.timer.options == curve.timer.options

    @pytest.mark.parametrize("device", ["cuda:0", "cpu"])
    def test_what_was_asked_for_stays(self, device):
        made = compose.experiment("mode=no_graph", "timer=none").resolve(device)
        assert (made.mode.name, made.timer.name) == ("no_graph", "none")

    def test_resolving_twice_changes_nothing(self, curve):
        assert curve.resolve("cpu").resolve("cpu") == curve.resolve("cpu")

    def test_nothing_else_changes(self, curve):
        found = curve.resolve("cpu")
        assert replace(found, mode=curve.mode, timer=curve.timer, device=curve.device) == curve


class TestCases:
    def test_are_the_points_in_the_order_that_was_asked_for(self):
        made = compose.experiment("workload=tiny", "workload.num_tokens=[50,1,16]")
        assert [case.num_tokens for case in made.cases()] == [50, 1, 16]

    def test_have_resolved_words(self, curve):
        for case in curve.resolve("cpu").cases():
            assert case.kv_cache_dtype == "fp8_e4m3"
            assert "auto" not in (case.mode, case.timer, case.device)
            assert json.loads(case.timer_options)["max_samples"] == 77

    def test_of_the_same_sizes_are_the_same_under_another_name(self, curve):
        other = replace(curve, workload=replace(curve.workload, name="mine"))
        assert list(other.cases()) == list(curve.cases())
        assert {case.workload for case in other.cases()} == {"mine"}

    def test_of_other_options_differ(self, curve):
        other = replace(curve, timer=replace(curve.timer, options={"max_samples": 78}))
        assert not set(other.cases()) & set(curve.cases())

    @pytest.mark.parametrize("field", fields(WorkloadSpec), ids=lambda field: field.name)
    def test_of_another_workload_differ_in_all_but_its_name_and_slots_that_have_a_hash(self, curve, field):
        value = getattr(curve.workload, field.name)
        changed = tuple(n + 1000 for n in value) if isinstance(value, tuple) else value * 2 or 1
        other = replace(curve, workload=replace(curve.workload, **{field.name: changed}))
        shared = set(other.cases()) & set(curve.cases())
        assert len(shared) == (4 if field.name in ("name", "recorded") else 0)

    def test_of_another_scale_differ(self, curve):
        other = replace(curve, scale=compose.choice("scale", "per_head"))
        assert not set(other.cases()) & set(curve.cases())

    def test_carry_the_layout_s_reason_outside_their_identity(self, curve):
        other = replace(curve, layout_reason="for a reason")
        assert list(other.cases()) == list(curve.cases())
        assert {case.layout_reason for case in other.cases()} == {"for a reason"}
        assert {case.layout_reason for case in curve.cases()} == {"chosen by name"}


def test_options_are_canonical():
    assert Choice("a", options={"b": 1, "a": 2.5}).options_json == '{"a":2.5,"b":1}'
    assert Choice("a").options_json == "{}"
