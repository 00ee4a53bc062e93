"""Flags and overrides in any order give the same curves."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from kvexp import cli
from kvexp.bench.impl_hash import conf_dir
from kvexp.cli import groups
from kvexp.results import sweep_dir
from tests.helpers import fake_sweep
from tests.helpers.cheap_compose import set_keys

USERS_LINE = "impl=cuda layout=HND -m dtype=half,bfloat16"


def curves(outcome):
    choices = [(j.experiment.impl, j.experiment.layout, j.experiment.dtype) for j in outcome.jobs]
    return [tuple(choice.name for choice in curve) for curve in choices]


@pytest.mark.parametrize(
    "line",
    [
        USERS_LINE,
        "impl=cuda layout=HND dtype=half,bfloat16",
        "impl=cuda --multirun layout=HND -cn config dtype=half,bfloat16",
        "impl=cuda -m layout=HND dtype=choice(half,bfloat16)",
    ],
)
def test_flags_may_stand_before_between_and_after_the_overrides(typed, line):
    outcome = typed(*line.split())
    assert outcome.err == ""
    assert curves(outcome) == [("cuda", "HND", "half"), ("cuda", "HND", "bfloat16")]


def test_the_defaults_are_the_seeds(typed):
    (job,) = typed().jobs
    experiment = job.experiment
    chosen = [group for group in groups.GROUPS if hasattr(experiment, group) and group != "workload"]
    names = [getattr(experiment, group).name for group in chosen]
    assert " ".join(names) == "reshape_and_cache_flash cuda NHD bfloat16 auto per_tensor auto auto"
    assert experiment.layout_reason == "chosen by name"
    sizes = experiment.workload
    assert sizes.name == "seed"
    assert sizes.num_tokens == tuple(2**n for n in range(1, 17))
    assert (sizes.num_heads, sizes.head_size, sizes.head_size_v) == (128, 128, 128)
    assert (sizes.block_size, sizes.num_blocks, sizes.num_layers) == (16, 65536, 1)
    assert (sizes.slots, sizes.padding, sizes.padding_at) == ("random", 0.0, "end")
    assert (sizes.rows, sizes.num_query_heads, sizes.extra_tokens, sizes.seed) == ("contiguous", 128, 0, 0)
    assert experiment.device == "auto"


def test_a_preset_sweeps_and_the_command_line_wins_over_it(typed):
    preset = {(impl, layout) for impl in ("torch", "triton", "cuda") for layout in ("NHD", "HND")}
    assert {curve[:2] for curve in curves(typed("experiment=quickstart"))} == preset
    outcome = typed("experiment=quickstart", "impl=torch", "workload=tiny", "layout=HND,NHD")
    assert curves(outcome) == [("torch", "HND", "bfloat16"), ("torch", "NHD", "bfloat16")]
    assert {job.experiment.workload.name for job in outcome.jobs} == {"tiny"}


def test_numbers_are_overridden_and_swept(typed):
    outcome = typed("workload.num_heads=8,32", "workload.num_tokens=[1,64]", "workload.seed=7")
    workloads = [job.experiment.workload for job in outcome.jobs]
    assert [w.num_heads for w in workloads] == [8, 32]
    assert {(w.num_tokens, w.seed) for w in workloads} == {((1, 64), 7)}


def test_num_tokens_is_a_number_too(typed):
    outcome = typed("workload.num_tokens=range(1,4)")
    assert [job.experiment.workload.num_tokens for job in outcome.jobs] == [(1,), (2,), (3,)]


def test_a_value_heads_size_follows_the_keys_unless_it_is_typed():
    assert set_keys("workload.head_size=64").workload.head_size_v == 64
    assert set_keys("workload.head_size=192", "workload.head_size_v=128").workload.head_size_v == 128


def test_query_heads_are_as_many_as_kv_heads_unless_a_workload_or_the_line_says_more():
    lines = ([], ["workload.num_heads=4"], ["workload=llama3_8b"], ["workload.num_query_heads=9"])
    found = [set_keys(*line).workload for line in lines]
    assert [(w.num_heads, w.num_query_heads) for w in found] == [(128, 128), (4, 4), (8, 32), (128, 9)]


def test_what_every_workload_shares_is_typed_whichever_is_chosen(typed):
    shared = {
        "num_layers": 3, "slots": "prefill", "padding": 0.25, "padding_at": "scattered", "rows": "qkv",
        "extra_tokens": 7, "seed": 5,
    }  # fmt: skip
    line = [f"workload.{key}={value}" for key, value in shared.items()]
    for job in typed("workload=tiny,llama3_70b_tp8", *line).jobs:
        assert {key: getattr(job.experiment.workload, key) for key in shared} == shared


def test_a_padding_without_a_point_is_a_fraction_too():
    padding = set_keys("workload.padding=0").workload.padding
    assert (padding, type(padding)) == (0.0, float)


def test_every_job_has_its_folder_where_the_command_was_typed(typed, elsewhere):
    outcome = typed("impl=torch,triton")
    folders = [job.folder for job in outcome.jobs]
    assert [folder.name for folder in folders] == ["0", "1"]
    assert folders[0].parent == folders[1].parent
    assert folders[0].parents[2] == elsewhere / "multirun"
    assert outcome.folders == [elsewhere / "multirun"]


def test_options_are_numbers_of_one_kind_whatever_was_typed():
    whole = set_keys("timer.max_seconds=2").timer
    assert whole.options_json == set_keys("timer.max_seconds=2.0").timer.options_json
    names = "warmup min_samples max_samples relative_error max_seconds cache inputs"
    assert set(whole.options) == set(names.split())


@pytest.mark.parametrize("name", ["auto", "cuda_event", "wall_clock", "none"])
def test_every_timer_shares_its_fields(name):
    timer = set_keys(f"timer={name}", "timer.warmup=9").timer
    assert (timer.name, timer.options["warmup"]) == (name, 9)


def test_someone_elses_implementation_needs_one_yaml(typed, write_own):
    write_own("impl/mine", "# My own.\n_target_: my_package.Mine\ntile: 4\n")
    outcome = typed("impl=mine", "-m", "--config-dir", "my", "impl.tile=8")
    choice = outcome.jobs[0].experiment.impl
    assert (choice.name, choice.target, choice.options) == ("mine", "my_package.Mine", {"tile": 8})


def test_an_address_that_is_typed_wins_over_the_environments(typed, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:1")
    assert typed("tracking=server").tracking.uri == "http://environment:1"
    assert typed("tracking=server", "tracking.uri=http://me:2").tracking.uri == "http://me:2"
    assert typed("tracking=none").tracking.uri is None


def test_an_experiment_that_is_typed_wins_over_the_environments_and_that_over_the_yamls(typed, monkeypatch):
    assert typed().tracking.experiment == "kvexp"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs\n")
    assert typed().tracking.experiment == "theirs"
    assert typed("tracking.experiment=kvexp").tracking.experiment == "kvexp"


@pytest.mark.parametrize("form", ["", "+", "++"])
def test_tags_are_typed_with_and_without_a_plus_and_are_texts(typed, form):
    tags = ("team=x", "a.b=3", "a.c-d=true", "when='1 May'")
    outcome = typed(*(f"{form}tracking.tags.{tag}" for tag in tags))
    assert outcome.err == ""
    assert outcome.tracking.tags == (("a.b", "3"), ("a.c-d", "true"), ("team", "x"), ("when", "1 May"))


def test_a_secret_in_a_tag_is_masked_wherever_it_goes(typed, elsewhere, monkeypatch):
    monkeypatch.setenv("FROM", "http://me:secret@b")
    tags = ("tracking.tags.a=http://me:secret@a", "tracking.tags.b=${oc.env:FROM}")
    outcome = typed("layout=NHD,HND", *tags)
    assert outcome.tracking.tags == (("a", "http://me:***@a"), ("b", "http://me:***@b"))
    written = [file.read_text() for file in elsewhere.rglob("*.*") if file.is_file()]
    assert len(written) > 4
    assert not any(":secret" in text for text in (outcome.command, outcome.again, outcome.out, *written))
    assert ":secret" not in typed("--cfg", "job", *tags[:1]).out


def test_a_sweeps_record_has_its_origin_and_what_was_swept_whoever_swept_it(typed, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "maria")
    swept = ("impl=torch", "layout=glob(N*)", "workload.seed=range(1,3)", "workload.num_heads=8,16")
    for words, params in (
        ((*swept, "tracking.tags.team=x"), {
            "layout": "NHD,NHD_packed", "workload.seed": "1,2", "workload.num_heads": "8,16",
        }),
        (("impl=torch", "tracking.tags.team=x"), {}),
    ):  # fmt: skip
        home = typed(*words).jobs[0].folder.parent
        origin = sweep_dir.read_provenance(home)
        assert (origin.tags["team"], origin.tags["mlflow.user"]) == ("x", "maria")
        assert origin.params == params


def test_what_a_preset_sweeps_is_swept(typed):
    home = typed("experiment=quickstart").jobs[0].folder.parent
    presets = yaml.safe_load((conf_dir() / "experiment" / "quickstart.yaml").read_text())
    params = presets["hydra"]["sweeper"]["params"]
    assert sweep_dir.read_provenance(home).params == {
        key: str(values).replace(" ", "") for key, values in params.items()
    }


def test_a_password_in_the_address_stays_out_of_the_kept_command(typed):
    outcome = typed("tracking=server", "tracking.uri=http://me:secret@host:1")
    assert "secret" in outcome.tracking.uri
    assert "secret" not in outcome.command


def test_a_long_composition_is_announced(typed):
    outcome = typed("workload.num_heads=range(1,12)")
    assert outcome.out == "composing 11 curves\n"
    assert len(outcome.jobs) == 11


@pytest.mark.parametrize(
    "line",
    [
        "impl=torch --cfg job layout=HND",
        "--cfg job impl=torch layout=HND --resolve",
        "impl=torch --info",
        "--info impl=torch",
        "--info defaults impl=torch",
        "--hydra-help",
        "--version",
        "--help impl=torch",
    ],
)
def test_what_only_prints_measures_nothing_and_writes_nothing(typed, line):
    outcome = typed(*line.split())
    assert (outcome.code, outcome.err, list(outcome.jobs), outcome.folders) == (0, "", [], [])
    assert outcome.out


def test_cfg_shows_the_overrides_on_both_sides(typed):
    out = typed("impl=torch", "--cfg", "job", "layout=HND").out
    assert "kvexp.impl.torch.Torch" in out
    assert "kvexp.layout.flash.HND" in out


@pytest.mark.usefixtures("elsewhere")
def test_an_interrupt_ends_with_130_and_no_traceback(monkeypatch, capfd):
    def interrupted(*_):
        raise KeyboardInterrupt

    fake_sweep.put(monkeypatch, interrupted)
    assert cli.dispatch(["impl=torch"]) == 130
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("elsewhere")
def test_the_exit_code_is_the_sweeps_and_argv_and_the_environment_are_left_as_they_were(monkeypatch):
    argv = list(sys.argv)
    fake_sweep.put(monkeypatch, code=3)
    assert cli.dispatch(["impl=torch"]) == 3
    assert sys.argv == argv
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.usefixtures("elsewhere")
def test_what_stops_inside_the_sweep_is_no_wrong_command_line(monkeypatch):
    def stopped(*_):
        raise SystemExit(1)

    fake_sweep.put(monkeypatch, stopped)
    with pytest.raises(SystemExit, match="1"):
        cli.dispatch(["impl=torch"])


def test_the_folder_of_options_is_absolute():
    assert groups.conf_dir() == groups.conf_dir().absolute()
    assert Path(groups.conf_dir() / "config.yaml").is_file()


def test_the_words_that_repeat_a_curve_hold_no_password(typed):
    outcome = typed("impl=torch", "workload=tiny", "tracking=server", "tracking.uri=http://maria:secret@host")
    (word,) = {word for job in outcome.jobs for word in job.words if "maria" in word}
    assert word.endswith(":***@host")


def test_a_launcher_of_curve_after_curve_is_refused_whatever_its_name(typed, write_own, tmp_path):
    target = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    write_own("hydra/launcher/mine", f"_target_: {target}\n")
    outcome = typed("hydra/launcher=mine", "--config-dir", "my")
    assert (outcome.code, outcome.folders) == (2, [tmp_path / "my"])
    assert outcome.err == (
        "kvexp: hydra/launcher=mine would run each curve by itself, and a sweep is measured as one; "
        "choose local or ray\n"
    )


def test_ctrl_c_ends_the_command_where_hydra_drops_it(typed, monkeypatch):
    compose, calls = ConfigLoaderImpl.load_sweep_config, []

    def drop(*arguments):
        calls.append(arguments)
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        return compose(*arguments)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", drop)
    outcome = typed("layout=NHD,HND", "dtype=half,float")
    assert (outcome.code, len(calls), outcome.jobs, outcome.folders) == (130, 1, [], [])
    assert outcome.err == "kvexp: interrupted before anything was measured\n"
