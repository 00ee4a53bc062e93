"""Files of the user's own that are wrong, and folders that hold something already: exit 2, and they stay."""

import subprocess
import sys

import pytest

from kvexp.host import file_lock
from tests.helpers import recorded_rows


def test_a_yaml_that_cannot_be_read_is_named_with_its_line(typed, write_own):
    write_own("impl/broken", "# Broken.\nx: [1\n")
    err = typed("--config-dir", "my", "impl=broken").err
    assert "broken.yaml, line 3" in err
    assert err.count("\n") == 1


def test_an_implementation_without_a_class_is_refused(typed, write_own):
    write_own("impl/empty", "# Nothing.\ntile: 1\n")
    assert "_target_" in typed("--config-dir", "my", "impl=empty").err


IMPL = "# Own.\n_target_: kvexp.impl.torch.Torch\n"
SIZES = "# Own.\nnum_tokens: 1\nnum_heads: 2\nhead_size: 32\nblock_size: 16\nnum_blocks: 8\n"
PRESET = "# @package _global_\n# Own?\n"
NO_TEXT = "that is no text: YAML reads on, yes, null and 1 as other values; write the key in quotes"


@pytest.mark.parametrize(
    ("group", "content", "sentence"),
    [
        ("impl", IMPL + "compile: false\non: 1\n", f"impl has the key true {NO_TEXT}"),
        ("impl", IMPL + "1: 1\n", f"impl has the key 1 {NO_TEXT}"),
        ("impl", IMPL + "!!binary aGk=: 1\n", f"impl has the key \"b'hi'\" {NO_TEXT}"),
        ("impl", IMPL + "~: 1\n", f"a YAML has a key {NO_TEXT} (Incompatible key type 'NoneType')"),
        ("impl", IMPL + "a:\n  on: 1\n", 'impl.a must be one value, not {"true": 1}'),
        ("impl", IMPL + "a:\n  !!binary aGk=: 1\n", "impl.a must be one value, not {}"),
        ("workload", SIZES + "off: 1\n", f"workload has the key false {NO_TEXT}"),
        (
            "timer",
            "# Own.\n_target_: kvexp.timer.none.NoTimer\nyes: 1\n",
            f"timer has the key true {NO_TEXT}",
        ),
        ("tracking", "# Own.\n2: 1\n", f"tracking has the key 2 {NO_TEXT}"),
        ("connector", "# Own.\nlayout: null\non: 1\n", f"connector has the key true {NO_TEXT}"),
        ("experiment", PRESET + "on: 1\n", f"the configuration has the key true {NO_TEXT}"),
        ("experiment", PRESET + "hydra:\n  job:\n    env_set:\n      1: a\n", "Key 1 (int) is incompatible"),
    ],
)
def test_a_key_that_is_no_text_is_one_sentence_and_leaves_nothing(typed, write_own, group, content, sentence):
    own = write_own(f"{group}/own", content)
    outcome = typed("--config-dir", "my", f"{group}=own")
    assert (outcome.code, list(outcome.jobs), outcome.folders) == (2, [], [own.parents[1]])
    assert outcome.err.startswith("kvexp: ")
    assert outcome.err.count("\n") == 1
    assert sentence in outcome.err


def test_a_default_that_is_no_text_is_one_sentence(elsewhere, write_own):
    write_own("experiment/own", PRESET + "defaults:\n  - on: cuda\n")
    # In a process of its own: pytest gives Hydra's assertions words.
    words = [sys.executable, "-m", "kvexp", "--config-dir", "my", "experiment=own", "tracking=none"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr, list(elsewhere.iterdir())) == (
        2,
        "kvexp: the `defaults` of a YAML hold something else than `GROUP: OPTION`, two texts\n",
        [elsewhere / "my"],
    )


def test_a_preset_with_numbers_of_its_own_is_refused(typed, write_own):
    write_own("experiment/inline", PRESET + "workload:\n  num_heads: 3\n")
    outcome = typed("--config-dir", "my", "experiment=inline", "workload=tiny")
    assert outcome.code == 2
    assert "inline.yaml sets keys of workload" in outcome.err


def test_an_option_of_the_users_own_cannot_take_the_name_of_ours(typed, write_own):
    write_own("impl/cuda", "# Another one.\n_target_: my.Cuda\n")
    outcome = typed("--config-dir", "my", "impl=cuda")
    assert outcome.code == 2
    assert "takes the name of kvexp's own impl=cuda" in outcome.err


@pytest.mark.parametrize(
    "words",
    [("resume=kept/in", "impl=torch"), ("hydra.sweep.dir=kept/in",), ("hydra.sweep.dir=kept/in/new",)],
)
@pytest.mark.parametrize(
    "held", [(), ("multirun.yaml", ".lock", "0/.hydra/config.yaml", "7/", "8/a", "note")]
)
def test_what_was_there_before_a_wrong_command_is_there_after_it_and_nothing_else(
    typed, elsewhere, words, held
):
    for name in {*held, *(("command.json", ".lock") if "resume" in words[0] else (".hydra/",))}:
        path = elsewhere / "kept" / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("{}")
    before = sorted(elsewhere.rglob("*"))
    assert typed(*words, "workload.num_heads=0,1").code == 2
    assert sorted(elsewhere.rglob("*")) == before


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


def test_a_folder_where_a_sweep_is_at_work_stays_as_it_is(typed, elsewhere):
    file = elsewhere / "mine" / "0" / ".hydra" / "overrides.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("- impl=torch\n")
    with file_lock.locked(elsewhere / "mine" / ".lock"):
        outcome = typed("impl=torch", "layout=NHD,HND", "workload=tiny", "hydra.sweep.dir=mine")
        assert outcome.code == 2
        assert "another sweep is at work there: " in outcome.err
        assert file.read_text() == "- impl=torch\n"
        assert sorted(path.name for path in (elsewhere / "mine").iterdir()) == [".lock", "0"]


def test_a_curves_own_folder_deeper_than_usual_is_not_written_into_twice(typed, write_own, elsewhere):
    write_own(
        "experiment/deep",
        "# @package _global_\n# Deeper?\nhydra:\n  sweep:\n    dir: kept\n    subdir: a/b\n",
    )
    folder = elsewhere / "kept" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("{}\n")
    outcome = typed("experiment=deep", "--config-dir", "my")
    assert outcome.code == 2
    assert "b holds the rows of another sweep" in outcome.err
    assert (folder / "rows.jsonl").read_text() == "{}\n"


def test_a_file_where_the_folder_of_sweeps_would_be_is_named(typed, elsewhere):
    (elsewhere / "multirun").touch()
    outcome = typed("impl=torch")
    assert outcome.code == 2
    assert outcome.err.startswith("kvexp: cannot make the folder multirun/")
    assert outcome.err.endswith(": multirun is a file\n")


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        *((name, LONG) for name in ("report", "export", "watch", "sync", "ui")),
        ("compare", LONG, LONG),
        ("report", "sweep", "--output", LONG),
        ("export", "sweep", "--output", f"{LONG}.csv"),
        (f"resume={LONG}",),
        (f"hydra.sweep.dir={LONG}",),
        ("--config-dir", LONG),
    ],
    ids=lambda words: "-".join(words).replace(LONG, "LONG"),
)
def test_a_name_that_is_too_long_is_one_sentence(typed, elsewhere, words):
    recorded_rows.sweep(elsewhere / "sweep", [recorded_rows.curve({1: 2.0})])
    outcome = typed(*words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("kvexp: ")
    assert LONG in outcome.err
    assert "File name too long" in outcome.err
    assert outcome.folders == [elsewhere / "sweep"]


def test_a_name_of_two_lines_is_said_in_one(typed):
    said = "kvexp: a\\nb does not exist; give a sweep's folder or a rows.jsonl file\n"
    assert typed("report", "a\nb").err == said


def test_the_traceback_of_a_name_that_is_too_long_is_there_for_who_asks(typed, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "Traceback" in typed("watch", LONG).err
