"""What Hydra users type: each row of the table in docs/hydra.md is typed, and does what the row says."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from kvexp.cli import groups
from tests.helpers import compose

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "hydra.md").read_text("utf-8")
TABLE = PAGE.partition("## ")[0]
ROWS = dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", TABLE, re.MULTILINE))
REFUSED = {
    line: text.removeprefix("refused: ") for line, text in ROWS.items() if text.startswith("refused: ")
}


def impls(outcome):
    return [job.experiment.impl.name for job in outcome.jobs]


def layouts(outcome):
    return [job.experiment.layout.name for job in outcome.jobs]


def heads(outcome):
    return [job.experiment.workload.num_heads for job in outcome.jobs]


def options(outcome):
    (job,) = outcome.jobs
    return dict(job.experiment.impl.options)


def folder(outcome):
    (job,) = outcome.jobs
    return job.folder.relative_to(Path.cwd()).as_posix()


def printed(outcome):
    """Return the keys of what was printed as YAML."""
    return list(yaml.safe_load(outcome.out))


SWEEP = (impls, ["torch", "triton"])
ONE = (impls, ["torch"])
NAMED = (impls, ["torch", "torch", "triton", "triton", "cuda", "cuda"])
DOES = {
    "impl=torch,triton": SWEEP,
    "impl=torch,triton -m": SWEEP,
    "impl=torch,triton hydra.mode=MULTIRUN": SWEEP,
    "impl=torch --run": ONE,
    "impl=torch hydra.mode=RUN": ONE,
    "layout=choice(NHD,HND)": (layouts, ["NHD", "HND"]),
    "layout=sort(NHD,HND)": (layouts, ["HND", "NHD"]),
    "layout=shuffle(NHD,HND)": (lambda outcome: sorted(layouts(outcome)), ["HND", "NHD"]),
    "layout=glob(*_packed)": (layouts, ["HND_packed", "NHD_packed"]),
    "workload.num_heads=range(1,4)": (heads, [1, 2, 3]),
    "workload.num_tokens=[1,64]": (lambda outcome: outcome.jobs[0].experiment.workload.num_tokens, (1, 64)),
    "experiment=quickstart": NAMED,
    "~experiment": (impls, ["cuda"]),
    "impl=cuda ++impl.sms=4": (lambda outcome: options(outcome)["sms"], 4),
    "impl=torch +impl.tile=4": (options, {"tile": 4}),
    "impl=torch_compile ~impl.compile": (options, {}),
    "hydra.sweep.dir=x": (folder, "x/0"),
    "hydra.sweep.dir=y/${hydra.job.name} hydra.job.name=x": (folder, "y/x/0"),
    "hydra.sweep.dir=x/${hydra.job.override_dirname} impl=torch hydra.job.config.override_dirname.kv_sep=-": (
        folder,
        "x/impl-torch/0",
    ),
    "hydra.job.chdir=false": (impls, ["cuda"]),
    "hydra/sweeper=basic": (impls, ["cuda"]),
    "hydra.searchpath=[my]": (impls, ["cuda"]),
    "--config-dir my impl=mine": (impls, ["mine"]),
    "--config-dir my --config-name main": (lambda outcome: outcome.settings.timeout_s, 7.0),
    "--config-path all": (impls, ["copy"]),
    "impl=torch --cfg job": (printed, [*compose.compose_config()[0], "choices"]),
    "impl=torch --cfg job --resolve": (lambda outcome: "${" in outcome.out, False),
    "impl=torch --cfg job --package impl": (printed, ["_target_"]),
    "--cfg hydra": (printed, ["hydra"]),
    "--cfg all": (lambda outcome: {"hydra", "workload"} <= {*printed(outcome)}, True),
    "--info": (lambda outcome: "Config search path" in outcome.out, True),
    "--hydra-help": (lambda outcome: "https://hydra.cc" in outcome.out, True),
    "-sc install=bash": (lambda outcome: outcome.out.endswith("hydra_bash_completion kvexp\n"), True),
}
"""What comes of each row that is not refused."""


@pytest.fixture
def own_folders(write_own, tmp_path):
    """Folders of options: my/ beside kvexp's conf/, and all/ in its place."""
    write_own("impl/mine", "# Mine.\n_target_: my_package.Mine\n")
    write_own("main", "# Mine.\ndefaults:\n  - config\n  - _self_\ntimeout_s: 7\n")
    shutil.copytree(groups.conf_dir(), tmp_path / "all")
    config = tmp_path / "all" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("impl: cuda", "impl: copy"), "utf-8")


def test_the_table_is_read_whole():
    assert len(ROWS) == TABLE.count("\n| ") - 1
    assert DOES.keys() == ROWS.keys() - REFUSED.keys()


@pytest.mark.usefixtures("own_folders")
@pytest.mark.parametrize("line", DOES)
def test_what_works_does_what_the_row_says(typed, monkeypatch, line):
    monkeypatch.setattr(sys, "argv", ["kvexp"])
    outcome = typed(*shlex.split(line))
    assert (outcome.code, outcome.err) == (0, "")
    find, expected = DOES[line]
    assert find(outcome) == expected


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused_is_one_sentence_before_anything_is_measured(typed, line):
    outcome = typed(*shlex.split(line))
    assert (outcome.code, outcome.out, list(outcome.jobs), outcome.folders) == (2, "", [], [])
    assert outcome.err.startswith("kvexp: ")
    assert outcome.err.count("\n") == 1
    assert REFUSED[line] in outcome.err


def test_options_of_another_search_path_are_there(typed, write_own):
    write_own("impl/mine", "# Mine.\n_target_: my_package.Mine\n")
    assert impls(typed("hydra.searchpath=[my]", "impl=mine")) == ["mine"]


@pytest.mark.parametrize(
    "setting",
    ["verbose: true", "job: {chdir: true}", "job: {env_set: {X: 1}}", "sweeper: {max_batch_size: 1}",
     "output_subdir: x"],
)  # fmt: skip
def test_a_yaml_cannot_set_what_is_refused(typed, write_own, tmp_path, setting):
    write_own("experiment/mine", f"# @package _global_\n# Mine?\nhydra:\n  {setting}\n")
    outcome = typed("--config-dir", "my", "experiment=mine", "impl=torch,triton")
    key = ".".join(["hydra", *re.findall(r"[a-z_]+(?=:)", setting)])
    assert (outcome.code, list(outcome.jobs), outcome.folders) == (2, [], [tmp_path / "my"])
    assert f"{key} in a YAML is refused, since " in outcome.err


def test_a_key_of_hydras_inside_a_dictionary_is_a_key_too(typed):
    assert "since paths belong to the folder" in typed("hydra.job={name:x,chdir:true}").err
    assert folder(typed("hydra.sweep={dir:x}", "impl=torch")) == "x/0"


def test_a_flag_and_a_mode_that_differ_are_refused(typed):
    assert "--run and hydra.mode=MULTIRUN ask for different things" in typed("-r", "hydra.mode=MULTIRUN").err
    assert "--multirun and hydra.mode=RUN ask for different things" in typed("-m", "hydra.mode=RUN").err


def test_one_curve_was_asked_for_and_a_named_sweep_has_more(typed):
    assert "asks for one curve, and 6 were typed" in typed("--run", "experiment=quickstart").err
    assert impls(typed("--run", "impl=torch", "hydra.sweep.dir=x")) == ["torch"]
    assert impls(typed("--run", "resume=x")) == ["torch"]


def test_the_record_and_cfg_say_which_option_of_each_group_was_chosen(typed):
    words = ("impl=torch", "mode=no_graph", "layout=auto", "op=reshape_and_cache_flash_diffkv")
    (job,) = typed(*words).jobs
    record = yaml.safe_load((job.folder / ".hydra" / "config.yaml").read_text("utf-8"))
    assert list(record["choices"]) == list(groups.GROUPS)
    chosen = {group: record["choices"][group] for group in ("op", "impl", "layout", "mode", "experiment")}
    assert chosen == {
        "op": "reshape_and_cache_flash_diffkv", "impl": "torch", "layout": "auto", "mode": "no_graph",
        "experiment": None,
    }  # fmt: skip
    assert yaml.safe_load(typed(*words, "--cfg", "job").out) == record
    assert record["mode"] == {}


@pytest.mark.parametrize(
    "line", ["choices.mode=no_graph", "+choices.mode=no_graph --cfg job", "++choices={mode:x}"]
)
def test_nobody_can_type_another_choice(typed, line):
    outcome = typed(*line.split())
    assert (outcome.code, outcome.out, outcome.folders) == (2, "", [])
    assert "is refused: choices says what was chosen; write GROUP=OPTION" in outcome.err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("kvexp impl=to", "impl=torch impl=torch_compile"),
        ("kvexp impl=cuda impl.s", "impl.slot_first= impl.sms= impl.software_fp8="),
        ("kvexp -m mode=c", "mode=cudagraph"),
    ],
)
def test_a_shell_asks_for_what_completes_a_word(typed, monkeypatch, words, found):
    monkeypatch.setenv("COMP_LINE", words)
    outcome = typed("-sc", "query=bash")
    assert (outcome.code, outcome.err, outcome.out) == (0, "", f"{found}\n")


def test_a_completion_that_would_do_nothing_is_refused(typed, monkeypatch):
    monkeypatch.delenv("COMP_LINE", raising=False)
    assert "-sc query is for shells, which set COMP_LINE" in typed("-sc", "query=bash").err
    monkeypatch.setattr(sys, "argv", ["/somewhere/kvexp/__main__.py"])
    assert "shells complete the command kvexp, not python -m kvexp" in typed("-sc", "install=bash").err
