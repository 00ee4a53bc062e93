"""An option is found by its aliases and in other capitals, wherever Hydra reads a name."""

import json
import re
from itertools import chain

import pytest
import yaml

from kvexp.cli import groups

CONF = groups.conf_dir()
OURS = {group: groups.list_options(group, [CONF]) for group in groups.GROUPS}
ALIASES = [
    (group, name, alias)
    for group, files in OURS.items()
    for name, file in files.items()
    for alias in groups.list_aliases(file)
]


def chosen(outcome, group):
    assert (outcome.code, outcome.err) == (0, "")
    return [getattr(job.experiment, group).name for job in outcome.jobs]


@pytest.mark.parametrize("group", groups.GROUPS)
def test_no_two_options_share_a_name(group):
    names = [(name, *groups.list_aliases(file)) for name, file in OURS[group].items()]
    words = [word.casefold() for word in chain(*names)]
    assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize(("group", "name", "alias"), ALIASES)
def test_an_alias_means_its_option_in_any_capitals(group, name, alias):
    for word in (alias, alias.upper(), name.upper(), name.lower()):
        assert groups.find_option(group, word, [CONF]) == name


def test_the_words_of_torch_and_vllm_are_among_them():
    words = ("float16", "fp16", "float32", "fp32", "bf16", "BFLOAT16")
    means = ["half", "half", "float", "float", "bfloat16", "bfloat16"]
    assert [groups.find_option("dtype", word, [CONF]) for word in words] == means


def test_a_sweep_has_the_options_own_names_and_keeps_what_was_typed(typed):
    outcome = typed("-m", "dtype=fp16,bf16", "layout=nhd", "impl=TORCH", "workload=TINY")
    assert chosen(outcome, "dtype") == ["half", "bfloat16"]
    assert chosen(outcome, "layout") == ["NHD", "NHD"]
    folder = outcome.jobs[0].folder
    record = folder / ".hydra" / "config.yaml"
    assert yaml.safe_load(record.read_text("utf-8"))["choices"]["dtype"] == "half"
    command = json.loads((folder.parent / "command.json").read_text("utf-8"))
    assert command["overrides"][0] == "dtype=fp16,bf16"
    again = typed(f"resume={folder.parent}")
    assert chosen(again, "dtype") == ["half", "bfloat16"]


def test_the_defaults_and_the_sweep_of_a_yaml_may_name_them(typed, write_own):
    write_own(
        "experiment/mine",
        "# @package _global_\n# Mine.\ndefaults:\n  - override /layout: hnd\n  - override /impl: Torch\n"
        "hydra:\n  sweeper:\n    params:\n      dtype: fp16,FP32\n",
    )
    outcome = typed("--config-dir", "my", "experiment=Mine")
    assert chosen(outcome, "dtype") == ["half", "float"]
    assert chosen(outcome, "layout") == ["HND", "HND"]


def test_an_option_of_the_users_own_may_have_some(typed, write_own):
    write_own("impl/mine", "# @aliases my,own\n# Mine.\n_target_: my_package.Mine\ntile: 4\n")
    outcome = typed("--config-dir", "my", "impl=own,torch", "impl.tile=8")
    assert chosen(outcome, "impl") == ["mine", "torch"]
    assert outcome.jobs[0].experiment.impl.options == {"tile": 8}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["dtype=half,fp16"], "the same curve is typed twice (dtype=half and dtype=fp16)"),
        (["--config-dir", "my"], "my/dtype/fp16.yaml takes the name of kvexp's own dtype=half"),
        (["hydra.searchpath=[my]", "dtype=fp16"], "my/dtype/fp16.yaml takes an alias of dtype=half"),
    ],
)
def test_two_meanings_of_a_name_are_refused(typed, write_own, line, sentence):
    write_own("dtype/fp16", "# Mine.\ntorch_dtype: float16\n")
    outcome = typed(*line)
    assert outcome.code == 2
    assert sentence in outcome.err


def test_printing_names_the_option_too(typed):
    outcome = typed("dtype=FP16", "--cfg", "job")
    assert re.search(r"^  dtype: half$", outcome.out, re.MULTILINE)
