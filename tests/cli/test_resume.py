"""`resume=` composes into an earlier sweep's folder: which one, with which overrides and curve numbers."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from kvexp.gpu import nvml
from kvexp.results.overrides import quote_value
from kvexp.results.plan import read_plan
from kvexp.results.row_file import RowFile
from tests.results.test_row_file import row


@pytest.fixture
def sweep(elsewhere):
    """Makes a sweep's folder with rows in some curves' folders, and what it was typed with."""

    def made(*overrides, name="2026-11-21/10-00-00-000000", numbers=(0, 1), flags=()):
        home = elsewhere / "multirun" / name
        home.mkdir(parents=True)
        for number in numbers:
            RowFile(home / str(number)).append(row())
        (home / "command.json").write_text(json.dumps({"overrides": overrides, "flags": flags}))
        return home

    return made


def test_alone_it_repeats_what_the_last_sweep_was_typed_with(typed, sweep):
    sweep("impl=triton", name="2026-11-20/10-00-00-000000")
    home = sweep("impl=torch", "layout=NHD,HND", "workload=tiny")
    outcome = typed("resume=true")
    assert (outcome.code, outcome.err) == (0, "")
    found = [(job.experiment.impl.name, job.experiment.layout.name) for job in outcome.jobs]
    assert found == [("torch", "NHD"), ("torch", "HND")]
    assert outcome.settings.resumes
    assert {job.folder.parent for job in outcome.jobs} == {home}


def test_beside_other_overrides_it_says_where(typed, sweep):
    home = sweep("impl=torch", "workload=tiny")
    outcome = typed("impl=triton", f"resume={home.relative_to(Path.cwd())}", "-m", "workload=tiny")
    assert [(job.experiment.impl.name, job.folder) for job in outcome.jobs] == [("triton", home / "2")]


def test_new_curves_never_take_a_number_that_was_used(typed, sweep):
    sweep("impl=torch", "layout=NHD,HND", numbers=(0, 9, 10))
    assert [job.folder.name for job in typed("resume=true").jobs] == ["11", "12"]


def test_a_sweep_that_was_killed_before_its_first_row_is_resumed_too(typed, sweep):
    home = sweep("impl=torch", numbers=())
    assert [job.folder for job in typed("resume=true").jobs] == [home / "0"]


@pytest.mark.parametrize("beside", [(), ("tracking=none",), ("tracking.experiment=mine", "-m")])
def test_where_there_is_nothing_to_resume_and_nothing_else_is_typed_nothing_is_measured(typed, beside):
    outcome = typed("resume=true", *beside)
    said = "kvexp: there is no sweep below multirun/ to resume; type what to measure, or resume=FOLDER\n"
    assert (outcome.code, outcome.err, list(outcome.jobs), outcome.folders) == (2, said, [], [])


def test_where_there_is_nothing_to_resume_it_is_a_fresh_sweep_and_a_word(typed):
    outcome = typed("resume=true", "impl=torch")
    assert outcome.code == 0
    assert outcome.err == "kvexp: there is no sweep below multirun/ to resume, so this is a new one\n"
    assert not outcome.settings.resumes
    assert [job.folder.name for job in outcome.jobs] == ["0"]


NOT_KEPT = "is not kept; type tracking.uri=ADDRESS beside resume= to track there\n"
HEADS = "'${oc.decode:${oc.env:HEADS}}'"


@pytest.mark.parametrize(
    ("first", "beside", "tracking"),
    [
        (["tracking=none"], [], ("none", None, "kvexp")),
        (["tracking=none"], ["tracking=local"], ("local", "here", "kvexp")),
        (["tracking.experiment=mine"], ["tracking.experiment=other"], ("local", "here", "other")),
        (
            ["tracking=server", "tracking.uri=http://host:1", "tracking.experiment=mine"],
            [],
            ("local", "here", "mine"),
        ),
        (
            ["tracking=server", "tracking.uri=http://me:secret@host:1", "tracking.experiment=mine"],
            ["tracking=server", "tracking.uri=http://me:secret@host:1"],
            ("server", "http://me:secret@host:1", "mine"),
        ),
    ],
)
def test_where_to_track_is_typed_again_beside_it(typed, elsewhere, first, beside, tracking):
    home = elsewhere / "multirun" / "a" / "b"
    assert typed("impl=torch", "workload=tiny", *first, f"hydra.sweep.dir={home}").code == 0
    kept = (home / "command.json").read_text()
    assert ("://" in kept, "secret" in kept) == (False, False)
    outcome = typed("resume=true", *beside)
    kind, uri, name = tracking
    uri = f"sqlite:///{elsewhere}/mlruns/mlflow.db" if uri == "here" else uri
    assert (outcome.tracking.kind, outcome.tracking.uri, outcome.tracking.experiment) == (kind, uri, name)
    assert [(job.experiment.impl.name, job.experiment.workload.name) for job in outcome.jobs] == [
        ("torch", "tiny")
    ]
    is_missed = "tracking=server" in first and not beside
    assert outcome.err == (
        f"kvexp: the store that the sweep in {home} was typed with {NOT_KEPT}" if is_missed else ""
    )


def test_tags_are_kept_as_the_experiments_name_is_and_a_typed_one_wins(typed, sweep):
    sweep("impl=torch", "tracking.tags.team=x", "tracking.tags.site=y", "tracking.tags={b:c}")
    for beside, team in (((), "x"), (("tracking.tags.team=z",), "z"), (("tracking=none",), "x")):
        outcome = typed("resume=true", *beside)
        assert (outcome.err, outcome.tracking.tags) == ("", (("b", "c"), ("site", "y"), ("team", team)))


def test_a_store_of_this_machines_configuration_is_taken(typed, sweep, monkeypatch):
    sweep("impl=torch", "tracking=server", "tracking.uri=http://theirs:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ours:1")
    assert typed("resume=true").tracking.uri == "http://ours:1"


def test_alone_it_measures_on_as_many_devices_as_before(typed, elsewhere, monkeypatch):
    monkeypatch.setattr(nvml, "list_gpus", lambda visible: ["GPU-1", "GPU-2"])
    for words in (["hydra.launcher.devices=[1,0]"], ["device=cpu", "hydra.launcher.workers=3"]):
        home = elsewhere / "multirun" / "2026-12-01" / words[-1]
        first = typed("impl=torch", "workload=tiny", *words, f"hydra.sweep.dir='{home}'")
        again = typed("resume=true")
        assert (first.code, again.code) == (0, 0)
        assert again.places == first.places
        assert len(again.places) > 1
        shutil.rmtree(elsewhere / "multirun")


@pytest.mark.parametrize(
    ("typed_first", "kept"),
    [
        (["workload.head_size=${workload.num_heads}", f"workload.num_heads={HEADS}",
          f"workload.num_tokens=[1,{HEADS}]", "tracking.experiment=${oc.env:TEAM}"],
         ["workload.head_size=6", "workload.num_heads=6", "workload.num_tokens=[1,6]",
          "tracking.experiment='it\\'s us'"]),
        ([r"tracking.experiment=$\{oc.env:TEAM\}", "layout=NHD,HND"],
         ["tracking.experiment='it\\'s us'", "layout=NHD,HND"]),
        (["workload.head_size=${workload.num_heads}", "workload.num_heads=8,16"], None),
        ([f"workload.num_heads=8,{HEADS}"], None),
        (["+impl.compile=${oc.env:LITERAL}"], None),
    ],
)  # fmt: skip
def test_a_reference_is_kept_by_its_value_or_the_command_is_not_kept(
    typed, elsewhere, monkeypatch, typed_first, kept
):
    for name, value in {"HEADS": "6", "TEAM": "it's us", "LITERAL": r"\${x}"}.items():
        monkeypatch.setenv(name, value)
    first = typed("impl=torch", "workload=tiny", *typed_first)
    (home,) = {job.folder.parent for job in first.jobs}
    assert json.loads((home / "command.json").read_text())["overrides"] == (
        None if kept is None else ["impl=torch", "workload=tiny", *kept]
    )
    for name in ("HEADS", "TEAM", "LITERAL"):
        monkeypatch.delenv(name)
    again = typed(f"resume={home.relative_to(elsewhere)}")
    if kept is None:
        assert "does not say what was typed; type the whole command again, with resume=" in again.err
    else:
        assert [job.experiment for job in again.jobs] == [job.experiment for job in first.jobs]


TYPED = ("impl=torch", "workload=tiny")


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (["layout=NHD,HND", "hydra.sweep.dir='my sweeps/it\\\\s'", "tracking=none", "repeat=2"], []),
        (["tracking.experiment=mine", "tracking.uri=http://host:1"], ["tracking.uri=http://host:1"]),
        ([f"workload.seed={HEADS}"], [*TYPED, f"workload.seed={HEADS}"]),
        (["hydra.job.chdir=false"], [*TYPED, "hydra.job.chdir=false"]),
        (["--config-dir", "."], []),
    ],
)  # fmt: skip
def test_an_interrupted_sweep_is_gone_on_with_by_the_command_that_it_says(
    typed, elsewhere, monkeypatch, first, rest
):
    monkeypatch.setenv("HEADS", "6")
    begun = typed(*TYPED, *first)
    (home,) = {job.folder.parent for job in begun.jobs}
    words = shlex.split(begun.again)
    flags = ["--config-dir=."] if "--config-dir" in first else []
    where = f"resume={quote_value(str(home.relative_to(elsewhere)))}"
    assert words == ["python", "-m", "kvexp", *flags, where, *rest]
    RowFile(home / "0").append(row())
    resumed = typed(*words[3:])
    assert resumed.err == ""
    assert {job.folder.parent for job in resumed.jobs} == {home}
    assert [job.experiment for job in resumed.jobs] == [job.experiment for job in begun.jobs]
    assert resumed.tracking == begun.tracking
    # Interrupted again, it says the same.
    assert resumed.again == begun.again


def test_other_curves_in_the_folder_of_a_sweep_are_gone_on_with_by_their_own_command(typed, sweep):
    home = sweep(*TYPED)
    outcome = typed("impl=triton", "workload=tiny", f"resume={home}")
    where = quote_value(str(home.relative_to(Path.cwd())))
    assert outcome.again == f"python -m kvexp resume={where} impl=triton workload=tiny"


@pytest.mark.parametrize("value", ["false", "null"])
def test_false_resumes_nothing(typed, sweep, value):
    home = sweep("impl=triton")
    outcome = typed(f"resume={value}", "impl=torch")
    assert [job.experiment.impl.name for job in outcome.jobs] == ["torch"]
    assert outcome.jobs[0].folder.parent != home


def test_what_a_curve_is_repeated_with_says_nothing_of_resuming(typed, sweep):
    sweep("impl=torch", "layout=NHD,HND", "hydra.sweep.dir=elsewhere", "resume=true")
    found = [job.words for job in typed("resume=true").jobs]
    assert found == [("impl=torch", "layout=NHD"), ("impl=torch", "layout=HND")]


def test_a_curve_of_a_preset_is_repeated_by_the_preset_and_its_own_choices(typed):
    first, *_ = typed("experiment=quickstart", "impl=torch,cuda", "--config-dir", ".").jobs
    assert sorted(first.words) == ["--config-dir=.", "experiment=quickstart", "impl=torch", "layout=NHD"]
    (alone,) = typed(*first.words).jobs
    assert alone.experiment == first.experiment


def test_a_curve_that_is_typed_in_another_way_is_planned_as_the_same(typed, elsewhere):
    (elsewhere / "experiment").mkdir()
    (elsewhere / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n- override /impl: triton\n- override /kv_cache_dtype: fp8\n"
    )
    usual = ("impl=triton", "kv_cache_dtype=fp8")
    ways = [
        usual,
        ("impl=triton", "kv_cache_dtype=fp8_e4m3", "layout=auto"),
        (*usual, "workload.seed=0", "workload.head_size_v=${workload.head_size}"),
        ("experiment=mine", "--config-dir=."),
    ]
    for number, words in enumerate(ways):
        assert typed(*words, f"hydra.sweep.dir={number}", "workload.num_tokens=[3,1]").err == ""
    first, *others = (read_plan(elsewhere / str(number) / "0") for number in range(len(ways)))
    assert others == [first] * 3
    assert first.num_tokens == (3, 1)


def test_another_folder_beside_it_is_refused(typed, sweep):
    sweep("impl=torch")
    outcome = typed("resume=true", "impl=torch", "hydra.sweep.dir=elsewhere")
    assert outcome.code == 2
    assert "hydra.sweep.dir is refused beside resume=" in outcome.err


def test_a_folder_with_a_quote_and_a_blank_is_a_folder(typed, sweep):
    home = sweep("impl=torch", name="2026-11-21/it's one")
    outcome = typed("resume=true")
    assert outcome.err == ""
    assert [job.folder for job in outcome.jobs] == [home / "2"]


@pytest.mark.parametrize("name", ["null", r"""gpu\7 a\'b two" a,b 100% [1] x=y ends""" + "\\"])
def test_a_folder_of_any_name_is_gone_on_in_and_no_other_is_made(typed, sweep, elsewhere, name):
    home = sweep("impl=torch", name=name)
    outcome = typed("impl=torch", f"resume={quote_value(str(home))}")
    assert (outcome.code, outcome.err) == (0, "")
    assert [job.folder for job in outcome.jobs] == [home / "2"]
    assert list((elsewhere / "multirun").iterdir()) == [home]


def test_how_a_sweep_is_run_is_typed_and_has_defaults(typed):
    usual = typed("impl=torch").settings
    found = (usual.timeout_s, usual.fail_fast, usual.isolation, usual.resumes)
    assert found == (600.0, False, "process", False)
    other = typed("impl=torch", "timeout_s=2.5", "fail_fast=true", "isolation=inline").settings
    assert (other.timeout_s, other.fail_fast, other.isolation) == (2.5, True, "inline")
    assert typed("impl=torch", "timeout_s=null").settings.timeout_s is None
