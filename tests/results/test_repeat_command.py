"""The command that is made from rows alone composes exactly their points, and says no more than it must."""

import json
import re
import shlex
from dataclasses import fields
from functools import cache

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kvexp.case import Case
from kvexp.results import load
from kvexp.results.labels import group_by_curve
from kvexp.results.overrides import quote_value
from kvexp.results.repeat_command import derive_overrides
from tests.helpers import compose, recorded_rows
from tests.helpers.cheap_compose import set_keys

ROOT = compose.conf_dir().parent
FILES = sorted([*ROOT.glob("docs/results/*/*.jsonl"), *ROOT.glob("baselines/*/*.jsonl")])
PAGES = sorted([*ROOT.glob("docs/results/*/*.md"), *ROOT.glob("docs/results/*/*.html")])
OPTIONS = ("op_options", "impl_options", "timer_options")


@cache
def read_curves():
    """Read each committed curve once, with its command."""
    found = {}
    for file in FILES:
        for curve in group_by_curve(load.read([file], file.parent)):
            found.setdefault((curve[0]["command"], json.dumps(describe(curve[0]))), []).extend(curve)
    return [(command, rows) for (command, _), rows in found.items()]


def describe(row):
    """What a row says of its point, but for num_tokens and the workload's name."""
    names = [field.name for field in fields(Case) if field.compare and field.name != "num_tokens"]
    return {name: row[name] for name in names}


@cache
def compose_command(command):
    """The points that a command composes, where a GPU is."""
    experiment = set_keys(*shlex.split(command)[3:])
    device = "cuda:0" if experiment.device == "auto" else experiment.device
    return [case.columns() for case in experiment.resolve(device).cases()]


def test_every_committed_curve_is_composed_by_its_command():
    curves = read_curves()
    assert len(curves) > 100
    for command, rows in curves:
        if any(rows[0][group] not in compose.options(group) for group in ("op", "impl", "layout", "timer")):
            assert command == ""
            continue
        cases = compose_command(command)
        assert {case["num_tokens"] for case in cases} == {row["num_tokens"] for row in rows}, command
        composed, measured = describe(cases[0]), describe(rows[0])
        for name in OPTIONS:  # options that were added since have the values that were fixed before
            now, then = json.loads(composed.pop(name)), json.loads(measured.pop(name))
            assert now.items() >= then.items(), command
            assert {now[option] for option in now.keys() - then.keys()} <= {None}, command
        assert composed == measured, command


def test_every_command_of_a_committed_page_composes():
    commands = {
        command
        for page in PAGES
        for command in re.findall(r"python -m kvexp [^`<]*", page.read_text("utf-8"))
    }
    assert len(commands) >= 8
    for command in commands:
        assert compose_command(command.replace("&#39;", "'"))


def test_what_the_defaults_say_is_not_said():
    assert derive_overrides(_seed()) == []


def _seed(**columns):
    """The rows of the default curve on a GPU."""
    cases = compose_command("python -m kvexp")
    return [recorded_rows.row(**case) | columns for case in cases]


@pytest.mark.parametrize(
    ("columns", "overrides"),
    [
        ({"impl": "triton", "impl_options": "{}"}, ["impl=triton"]),
        ({"op": "reshape_and_cache", "layout": "head_major"}, ["op=reshape_and_cache"]),
        ({"op": "reshape_and_cache", "layout": "NHD"}, ["op=reshape_and_cache", "layout=NHD"]),
        ({"mode": "no_graph"}, ["mode=no_graph"]),
        ({"timer": "wall_clock"}, ["timer=wall_clock"]),
        ({"device": "cuda:3"}, ["device=cuda:3"]),
        ({"device": "cpu", "mode": "no_graph", "timer": "wall_clock"}, ["device=cpu"]),
        ({"head_size": 64, "head_size_v": 64}, ["workload.head_size=64"]),
        ({"head_size_v": 64}, ["workload.head_size_v=64"]),
        ({"padding": 0.25, "rows": "qkv"}, ["workload.padding=0.25", "workload.rows=qkv"]),
        ({"workload": "tiny"}, [
            "workload=tiny", "workload.context=4096", "workload.num_heads=128", "workload.head_size=128",
            "workload.num_blocks=65536",
        ]),
        ({"workload": "my_model"}, []),
        ({"impl_options": '{"cta_threads":256,"slot_first":true,"software_fp8":false}'},
         ["impl.cta_threads=256", "impl.slot_first=true"]),
        ({"impl_options": '{"software_fp8":null}'}, ["impl.software_fp8=null"]),
        ({"timer_options": '{"cache":"hot","max_seconds":2,"relative_error":1e-05}'},
         ["timer.cache=hot", "timer.relative_error=1e-05"]),
        ({"impl": "mine"}, None),
        ({"impl": "../impl/torch"}, None),
        ({"layout": "head_major_interleaved"}, None),
        ({"impl_options": '{"was_once":1}'}, None),
    ],
)  # fmt: skip
def test_only_what_differs_from_the_defaults_is_said(columns, overrides):
    found = derive_overrides(_seed(**columns))
    num_tokens = [] if "workload" not in columns or columns["workload"] == "my_model" else [
        f"workload.num_tokens=[{','.join(str(2**power) for power in range(1, 17))}]"
    ]  # fmt: skip
    assert found == (None if overrides is None else [*overrides, *num_tokens])


@pytest.mark.parametrize(
    "words",
    [["op=concat_and_cache_mla"], ["op=indexer_k_quant_and_cache"],
     ["op=indexer_k_quant_and_cache", "op.scale_fmt=float32"]],
    ids=str,
)  # fmt: skip
def test_what_an_op_brings_is_not_said_and_its_own_option_is(words):
    cases = compose_command(f"python -m kvexp {' '.join(words)}")
    assert derive_overrides([recorded_rows.row(**case) for case in cases]) == words


@pytest.mark.parametrize("workload", compose.options("workload"))
@pytest.mark.parametrize("timer", ["cuda_event", "cupti", "none"])
def test_a_workload_alone_is_its_name(workload, timer):
    command = f"python -m kvexp workload={workload} timer={timer} op=reshape_and_cache_flash impl=triton"
    rows = [recorded_rows.row(**case) for case in compose_command(command)]
    usual = (
        {"impl=triton"}
        | ({f"timer={timer}"} - {"timer=cuda_event"})
        | ({f"workload={workload}"} - {"workload=seed"})
    )
    assert set(derive_overrides(rows)) == usual


def test_a_curve_without_its_folder_can_be_repeated_with_every_kind_of_value(tmp_path):
    command = (
        "python -m kvexp impl=triton impl.num_warps=8 impl.slot_first=false layout=HND dtype=half "
        "scale=per_head kv_cache_dtype=fp8_e5m2 mode=no_graph timer=wall_clock timer.max_seconds=1e-06 "
        "device=cpu workload=llama3_8b workload.slots=prefill 'workload.num_tokens=[3,1]'"
    )
    cases = compose_command(command)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(recorded_rows.row(**case)) + "\n" for case in cases)
    )
    (found,) = {row["command"] for row in load.read([tmp_path / "rows.jsonl"], tmp_path)}
    assert compose_command(found) == cases


texts = st.text() | st.text(alphabet="\\'\"${}[](),:= ab1.\n\t~+")
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts


@given(value=scalars | st.lists(scalars))
def test_hydra_and_omegaconf_read_a_quoted_value_back(value):
    text = f"key={quote_value(value)}"
    (override,) = OverridesParser.create().parse_overrides([text])
    found = OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True)["key"]
    assert (found, json.dumps(found)) == (value, json.dumps(value))
    # As a sweep passes it to each of its curves.
    again = f"key={override.get_value_element_as_str()}"
    assert OverridesParser.create().parse_overrides([again])[0].value() == override.value()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("null", "'null'"),
        ("TRUE", "'TRUE'"),
        ("fp8_e4m3", "fp8_e4m3"),
        ("cuda:1", "cuda:1"),
        ("8", "'8'"),
        ("", "''"),
        ("-O3 -v", "'-O3 -v'"),
        ("it's", r"'it\'s'"),
        ("gpu\\7", "'gpu\\7'"),
        ("ends\\", r"'ends\\'"),
        ("${oc.env:HOME}", r"'\${oc.env:HOME}'"),
        ([1, "a b", None], "[1,'a b',null]"),
    ],
)
def test_a_value_is_quoted_only_where_it_must_be(value, text):
    assert quote_value(value) == text
