"""Every file in conf/ composes, and every class that one names is there."""

import importlib
import sys
from dataclasses import MISSING, fields, replace

import pytest
import yaml

from kvexp.case import Sizes
from kvexp.cli import groups, sweep_task
from kvexp.errors import Unsupported
from kvexp.impl import make
from tests.helpers import cheap_compose, compose

CONF = groups.conf_dir()
TWINS = {"layout": "auto", "kv_cache_dtype": "fp8"}
"""Options that are another one under a second name: both in one sweep are the same curve twice."""
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
TARGETS = [
    (path, content["_target_"])
    for path in FILES
    if "_target_" in (content := yaml.safe_load((CONF / path).read_text("utf-8")))
]


def test_every_option_composes(typed, monkeypatch):
    monkeypatch.setattr(sweep_task, "MOST_CURVES", sys.maxsize)  # of their product, a few are composed
    cheap_compose.choose_jobs(monkeypatch, cheap_compose.list_abreast)
    options = {
        group: [name for name in groups.list_options(group, [CONF]) if name != TWINS.get(group)]
        for group in sorted({*groups.GROUPS} - {"connector", "tracking", "experiment"})
    }
    outcome = typed(*(f"{group}={','.join(names)}" for group, names in options.items()))
    assert (outcome.code, outcome.err) == (0, "")
    for group, names in options.items():
        assert {getattr(job.experiment, group).name for job in outcome.jobs} == {*names}


@pytest.mark.parametrize(("group", "option", "field", "means"), [
    ("layout", "auto", "layout", "NHD"),
    ("kv_cache_dtype", "fp8", "kv_cache_dtype", "fp8"),
    *(("connector", option, "layout", "NHD") for option in groups.describe_options("connector", [CONF])),
])  # fmt: skip
def test_an_option_that_makes_the_curve_of_another_composes_alone(group, option, field, means):
    assert getattr(compose.experiment(f"{group}={option}"), field).name == means


def test_an_op_brings_an_implementation_and_a_layout_that_have_it_and_typed_ones_win(typed):
    ops = f"op={','.join(groups.describe_options('op', [CONF]))}"
    for experiment in (job.experiment for job in typed(ops).jobs):
        module, _, name = experiment.impl.target.rpartition(".")
        assert hasattr(getattr(importlib.import_module(module), name), experiment.op.name)
        assert compose.takes(experiment.op.name, experiment.layout.name)
    for job in typed(ops, "impl=torch", "layout=HND_packed").jobs:
        assert (job.experiment.impl.name, job.experiment.layout.name) == ("torch", "HND_packed")


def test_the_study_of_layouts_refuses_nothing_but_a_read_of_too_many_sequences(typed):
    outcome = typed("experiment=layout_study")
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.jobs) == 4 * 18
    for workload in ("qwen3_14b", "qwen3_0_6b", "llama3_70b_tp8"):
        sizes = compose.experiment(f"workload={workload}").workload
        refused = set()
        for job in outcome.jobs[:18]:
            study = {key: getattr(job.experiment.workload, key) for key in ("num_tokens", "num_layers")}
            experiment = replace(job.experiment, workload=replace(sizes, **study))
            op, layout = make(experiment.op), make(experiment.layout)
            for case in experiment.cases():
                op.check(case, layout, 2)
                try:
                    op.count_places(case)
                except Unsupported:
                    refused.add((case.op, case.num_tokens))
        assert refused == {("paged_decode", 8192)}


@pytest.mark.parametrize("option", groups.describe_options("connector", [CONF]))
def test_a_connector_asks_for_a_layout_that_is_there_or_for_none(option):
    content = yaml.safe_load((CONF / "connector" / f"{option}.yaml").read_text("utf-8"))
    assert content.keys() == {"layout"}
    assert content["layout"] in (None, *compose.options("layout"))


@pytest.mark.parametrize("option", groups.describe_options("tracking", [CONF]))
def test_every_tracking_composes(typed, option):
    outcome = typed(f"tracking={option}", "tracking.uri=http://host:5000")
    assert (outcome.code, outcome.err, outcome.tracking.kind) == (0, "", option)


PRESETS = groups.describe_options("experiment", [CONF])


@pytest.mark.parametrize("option", [name for name in PRESETS if name != "layout_study"])
def test_every_preset_composes(typed, monkeypatch, option):
    cheap_compose.choose_jobs(monkeypatch, cheap_compose.list_one_by_one)
    outcome = typed(f"experiment={option}")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.jobs


def test_a_workload_without_more_keys_is_what_was_declared():
    declared = {size.name: size.default for size in fields(Sizes) if size.default is not MISSING}
    assert {key: vars(compose.experiment().workload)[key] for key in declared} == declared


@pytest.mark.parametrize(("path", "target"), TARGETS, ids=[path for path, _ in TARGETS])
def test_every_class_is_there(path, target):
    module, _, name = target.rpartition(".")
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", FILES)
def test_every_file_begins_with_what_it_is(path):
    first, *rest = (CONF / path).read_text("utf-8").splitlines()
    line = rest[0] if first.startswith("# @") else first
    assert line.startswith("# ")
    assert line.endswith((".", "?"))


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("experiment/")])
def test_a_preset_chooses_options_and_sweeps_and_nothing_else(path):
    content = yaml.safe_load((CONF / path).read_text("utf-8"))
    assert set(content) <= {"defaults", "hydra"}
    assert content["hydra"].keys() == {"sweeper"}
    assert content["hydra"]["sweeper"].keys() == {"params"}


def test_caches_hold_the_longest_call_and_all_but_tinys_twice_an_l2():
    for option in groups.describe_options("workload", [CONF]):
        sizes = compose.experiment(f"workload={option}").workload
        slots = sizes.num_blocks * sizes.block_size
        bfloat16 = 2
        row = sizes.num_heads * (sizes.head_size + sizes.head_size_v) * bfloat16
        assert max(sizes.num_tokens) <= slots
        assert sizes.name == "tiny" or slots * row > 2 * 60e6
