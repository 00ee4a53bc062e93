"""What is typed wrong is exit 2: one sentence on stderr that says what is possible, and nothing on disk."""

import pytest

from tests import composed

GROUPS_OF_IMPL = ", ".join(composed.options("impl"))
KEYS_OF_WORKLOAD = "block_size, head_size, head_size_v, num_blocks, num_heads, num_tokens, seed, slots"

BAD = {
    # Options
    "impl=tornch": f"unknown impl 'tornch' (did you mean torch?); choose one of {GROUPS_OF_IMPL}",
    "impl=tornch layout=NHD,HND": GROUPS_OF_IMPL,
    "impl=torch,tornch": GROUPS_OF_IMPL,
    "impl=TORCH": GROUPS_OF_IMPL,
    "impl=": GROUPS_OF_IMPL,
    "impl=törch": f"'ö' is not allowed there; impl is one of {GROUPS_OF_IMPL}",
    "x=törch": "cannot read the override 'x=törch': 'ö' is not allowed there",
    "impl=cuda)": f"extraneous input ')'; impl is one of {GROUPS_OF_IMPL}",
    "impl=cuda,": f"it ends too early; impl is one of {GROUPS_OF_IMPL}",
    "impl=null": GROUPS_OF_IMPL,
    "impl=1": GROUPS_OF_IMPL,
    "impl=[cuda,torch]": GROUPS_OF_IMPL,
    "impl={tile:1}": GROUPS_OF_IMPL,
    "impl=cuda.yaml": GROUPS_OF_IMPL,
    "impl=glob(x*)": "nothing to measure",
    "impl": GROUPS_OF_IMPL,
    "~impl": GROUPS_OF_IMPL,
    "+layout=HND": "HND, NHD",
    "++layout=HND": "HND, NHD",
    "experiment=quikstart": "did you mean quickstart?",
    "experiment=quickstart,seed_flash": "sweep over experiment",
    "experiment=glob(*)": "sweep over experiment",
    "experiment=choice(quickstart,seed_flash)": "sweep over experiment",
    "tracking=local,none": "tracked in one place",
    "tracking=server": "no address",
    # Keys
    "workload.num_hedas=8": f"(did you mean workload.num_heads?); workload has {KEYS_OF_WORKLOAD}",
    "workload.num_hedas=8,9": KEYS_OF_WORKLOAD,
    "+workload.foo=1": KEYS_OF_WORKLOAD,
    "+workload.num_heads=1": "without a +",
    "workload.num_heads.foo=1": "has no keys",
    "workload.num_tokens.foo=1": "type the whole list",
    "~workload.num_heads": "workload.num_heads is missing",
    "layuot=HND": "did you mean layout?",
    "+layuot=HND": "did you mean layout?",
    "++layuot=HND": "did you mean layout?",
    "layout/foo=HND": "unknown key",
    "+timer.foo=1": "relative_error",
    "+tracking.foo=1": "experiment, uri",
    "mode.foo=1": "mode has no keys",
    "~device": "device is missing",
    "hydra.foo=1": "unknown key hydra.foo",
    "dtype.torch_dtype=float64": "choose an option of dtype",
    "impl._target_=os.system": "only YAML files name classes",
    "+hydra.callbacks.x._target_=os.system": "only YAML files name classes",
    "workload.num_heads=8 ++workload.num_heads=9": "typed twice",
    "impl=torch impl=cuda": "typed twice",
    "hydra.mode=RUN": "always sweeps",
    "hydra.sweep.subdir=x": "every curve has a folder of its own",
    "hydra.sweep={dir:x,subdir:y} layout=NHD,HND": "2 curves would share",
    "hydra.sweep.dir=???": "hydra.sweep.dir",
    "layout=NHD,NHD": "the same curve is typed twice (layout=NHD); keep one of them",
    "workload=tiny workload.num_tokens=[1,2],[2,3]": "the same curve is typed twice (workload=tiny",
    "workload.num_heads=2,2": "the same curve is typed twice (workload.num_heads=2)",
    "hydra.sweeper.params.experiment=a": "refused",
    # Types and sizes
    "workload.num_heads=abc": "must be a whole number, not 'abc'",
    "workload.num_heads=8.0": "must be a whole number, not 8.0",
    "workload.num_heads=true": "must be a whole number, not true",
    'workload.num_heads="8"': "must be a whole number, not '8'",
    "workload.num_heads=null": "must be a whole number, not null",
    "workload.num_heads=": "must be a whole number, not ''",
    "workload.num_heads=???": "workload.num_heads",
    "workload.num_heads=${nope}": "nope",
    "workload.num_heads=0": "must be at least 1, not 0",
    "workload.block_size=-4": "must be at least 1, not -4",
    "workload.num_heads=0,8": "wrong in 1 of 2 curves",
    "workload.num_heads=interval(1,3)": "range(1,9)",
    "workload.num_tokens=[1,x]": "must be a whole number, not 'x'",
    "workload.num_tokens=[]": "at least one",
    "workload.num_tokens=[4,0]": "must be at least 1, not 0",
    "workload.num_tokens=[8,8]": "names 8 twice",
    "workload.num_tokens=4294967296": "at most 2147483647",
    "workload.num_blocks=9223372036854775807": "int64",
    "workload.slots=sorted": "must be random or contiguous, not 'sorted'",
    "workload.seed=-1": "must be at least 0",
    "timer.warmup=0": "must be at least 1",
    "timer.max_seconds=nan": "must be a positive number",
    "timer.relative_error=0": "must be a positive number",
    "timer.max_samples=5": "below timer.min_samples",
    "device=gpu": "auto, cuda, cuda:N or cpu, not 'gpu'",
    "device=cuda:x": "not 'cuda:x'",
    "device=0": "not 0",
    "tracking.uri=5": "must be a text",
    "+impl.tiles=[1,2]": "must be one value",
    # Syntax and flags
    "a=[1": "cannot read the override 'a=[1'",
    "impl=torch foo": "'foo' is no override",
    "=3": "names no key",
    "compare": "unknown command 'compare'",
    "--foo": "unrecognized arguments: --foo",
    "impl=torch --foo=1 layout=HND": "unrecognized arguments: --foo=1",
    "--config-dir": "expected one argument",
    "--config-dir /nowhere": "'/nowhere' not found",
    "-cp nowhere": "nowhere' exists",
    "-cn nothing": "'nothing'",
    "--cfg everything": "invalid choice",
    "--cfg job impl=torch,cuda": "show one curve",
    "--experimental-rerun x.pickle": "refused",
    "--resolve": "--cfg",
}


@pytest.mark.parametrize("line", BAD)
def test_one_sentence_and_nothing_on_disk(typed, line):
    outcome = typed(*line.split())
    assert outcome.code == 2
    assert outcome.err.startswith("kvexp: ")
    assert outcome.err.count("\n") == 1
    assert BAD[line] in outcome.err
    assert outcome.out == ""
    assert list(outcome.jobs) == []
    assert outcome.folders == []


def test_a_yaml_that_cannot_be_read_is_named_with_its_line(typed, tmp_path):
    folder = tmp_path / "my" / "impl"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_text("# Broken.\nx: [1\n")
    err = typed("--config-dir", "my", "impl=broken").err
    assert "broken.yaml, line 3" in err
    assert err.count("\n") == 1


def test_an_implementation_without_a_class_is_refused(typed, tmp_path):
    folder = tmp_path / "my" / "impl"
    folder.mkdir(parents=True)
    (folder / "empty.yaml").write_text("# Nothing.\ntile: 1\n")
    assert "_target_" in typed("--config-dir", "my", "impl=empty").err


def test_a_preset_with_numbers_of_its_own_is_refused(typed, tmp_path):
    folder = tmp_path / "my" / "experiment"
    folder.mkdir(parents=True)
    (folder / "inline.yaml").write_text("# @package _global_\n# Q?\nworkload:\n  num_heads: 3\n")
    outcome = typed("--config-dir", "my", "experiment=inline", "workload=tiny")
    assert outcome.code == 2
    assert "inline.yaml sets keys of workload" in outcome.err


def test_an_option_of_the_users_own_cannot_take_the_name_of_ours(typed, tmp_path):
    folder = tmp_path / "my" / "impl"
    folder.mkdir(parents=True)
    (folder / "cuda.yaml").write_text("# Another one.\n_target_: my.Cuda\n")
    outcome = typed("--config-dir", "my", "impl=cuda")
    assert outcome.code == 2
    assert "takes the name of kvexp's own impl=cuda" in outcome.err


def test_a_folder_with_something_in_it_is_left_alone(typed, elsewhere):
    folder = elsewhere / "kept"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    assert typed("hydra.sweep.dir=kept", "workload.num_heads=0,1").code == 2
    assert (folder / "rows.jsonl").read_text() == "{}\n"


def test_a_folder_with_the_rows_of_another_sweep_is_named_and_stays_as_it_is(typed, elsewhere):
    job = elsewhere / "kept" / "0"
    (job / ".hydra").mkdir(parents=True)
    (job / "rows.jsonl").write_text("{}\n")
    (job / ".hydra" / "config.yaml").write_text("impl: theirs\n")
    outcome = typed("hydra.sweep.dir=kept", "layout=NHD,HND")
    assert (outcome.code, list(outcome.jobs)) == (2, [])
    assert outcome.err == "kvexp: kept holds the rows of another sweep; choose another hydra.sweep.dir\n"
    assert (job / "rows.jsonl").read_text() == "{}\n"
    assert (job / ".hydra" / "config.yaml").read_text() == "impl: theirs\n"
    assert list((elsewhere / "kept").iterdir()) == [job]


def test_a_curves_own_folder_deeper_than_usual_is_not_written_into_twice(typed, elsewhere):
    folder = elsewhere / "kept" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("{}\n")
    outcome = typed("hydra.sweep={dir:kept,subdir:a/b}")
    assert outcome.code == 2
    assert "b holds the rows of another sweep" in outcome.err
    assert (folder / "rows.jsonl").read_text() == "{}\n"


def test_a_file_where_the_folder_of_sweeps_would_be_is_named(typed, elsewhere):
    (elsewhere / "multirun").touch()
    outcome = typed("impl=torch")
    assert outcome.code == 2
    assert outcome.err.startswith("kvexp: cannot make the folder multirun/")
    assert outcome.err.endswith(": multirun is a file\n")


def test_the_traceback_is_there_for_who_asks(typed, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = typed("impl=tornch")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("kvexp: unknown impl 'tornch'")
