"""Own keys of an option (`impl.sort`) have the type that its YAML gives them, and count where it has them."""

import json

import pytest
import yaml

MINE = "# Mine.\n_target_: my_package.Mine\nsort: false\ntile: 4\npart: 0.5\nhow: plain\nany: null\n"
YOURS = "# Yours.\n_target_: my_package.Yours\nspeed: 1\n"


@pytest.fixture
def options(typed, write_own):
    """Types a line beside two implementations of the user's own; returns each curve's name and options."""
    write_own("impl/mine", MINE)
    write_own("impl/yours", YOURS)

    def found(*line):
        outcome = typed("--config-dir", "my", *line)
        assert (outcome.code, outcome.err) == (0, "")
        return [(job.experiment.impl.name, dict(job.experiment.impl.options)) for job in outcome.jobs]

    return found


@pytest.fixture
def refusal(typed, write_own):
    """Types a line that is refused before anything is measured; returns the sentence."""
    write_own("impl/mine", MINE)
    write_own("impl/yours", YOURS)

    def found(*line):
        outcome = typed("--config-dir", "my", *line)
        assert (outcome.code, outcome.out, list(outcome.jobs)) == (2, "", [])
        assert outcome.err.count("\n") == 1
        return outcome.err.removeprefix("kvexp: ").rstrip()

    return found


OWN = {"sort": False, "tile": 4, "part": 0.5, "how": "plain", "any": None}


@pytest.mark.parametrize(
    ("typed_value", "value"),
    [
        ("sort=true", True), ("tile=-8", -8), ("part=0.25", 0.25), ("part=1", 1.0), ("how=other", "other"),
        ("how='4'", "4"), ("any=true", True), ("any=4", 4), ("any=0.5", 0.5), ("any=text", "text"),
        ("any=null", None),
    ],
)  # fmt: skip
def test_a_value_of_the_yamls_type_is_taken(options, typed_value, value):
    key = typed_value.partition("=")[0]
    ((_, found),) = options("impl=mine", f"impl.{typed_value}")
    assert found == {**OWN, key: value}
    assert type(found[key]) is type(value)


@pytest.mark.parametrize(
    ("typed_value", "sentence"),
    [
        ("sort=maybe", "impl.sort must be true or false, not 'maybe'"),
        ("sort=1", "impl.sort must be true or false, not 1"),
        ("sort=null", "impl.sort must be true or false, not null"),
        ("sort=true,maybe", "impl.sort must be true or false, not 'maybe'"),
        ("++impl.sort=maybe", "impl.sort must be true or false, not 'maybe'"),
        ("tile=wide", "impl.tile must be a whole number, not 'wide'"),
        ("tile=4.5", "impl.tile must be a whole number, not 4.5"),
        ("tile=true", "impl.tile must be a whole number, not true"),
        ("part=half", "impl.part must be a number, not 'half'"),
        ("how=4", "impl.how must be a text, not 4"),
        ("any=[1]", "impl.any must be one value, not [1]"),
    ],
)
def test_a_value_of_another_type_is_refused(refusal, typed_value, sentence):
    word = typed_value if typed_value.startswith("++") else f"impl.{typed_value}"
    assert refusal("impl=mine", word) == sentence


def test_kvexps_own_options_are_typed_too(refusal):
    assert refusal("impl=cuda", "impl.software_fp8=maybe") == (
        "impl.software_fp8 must be true or false, not 'maybe'"
    )


def test_a_key_without_a_value_in_the_yaml_must_be_typed_and_may_be_anything(typed, write_own):
    write_own("impl/mine", "# Mine.\n_target_: my_package.Mine\nneed: ???\nseed: ${workload.seed}\n")
    line = ("--config-dir", "my", "impl=mine")
    assert "impl.need: Missing mandatory value" in typed(*line).err
    (job,) = typed(*line, "impl.need=3").jobs
    assert job.experiment.impl.options == {"need": 3, "seed": 0}
    (job,) = typed(*line, "impl.need=wide", "impl.seed=none").jobs
    assert job.experiment.impl.options == {"need": "wide", "seed": "none"}


def test_a_key_counts_for_the_options_that_have_it(options):
    assert options("impl=yours,mine,torch", "impl.sort=true") == [
        ("yours", {"speed": 1}), ("mine", {**OWN, "sort": True}), ("torch", {}),
    ]  # fmt: skip


def test_values_of_a_key_that_an_option_lacks_are_one_curve_of_it(options):
    assert options("impl=torch,mine", "impl.tile=8,16") == [
        ("torch", {}), ("mine", {**OWN, "tile": 8}), ("mine", {**OWN, "tile": 16}),
    ]  # fmt: skip
    assert options("impl=mine,yours", "impl.tile=8,16", "impl.speed=2,3") == [
        ("mine", {**OWN, "tile": 8}), ("mine", {**OWN, "tile": 16}), ("yours", {"speed": 2}),
        ("yours", {"speed": 3}),
    ]  # fmt: skip


def test_a_curve_that_is_typed_twice_is_still_refused(refusal):
    assert "the same curve is typed twice (impl=mine impl.tile=8)" in refusal("impl=mine", "impl.tile=8,8")


def test_the_curves_are_numbered_and_their_records_hold_what_counted(typed, write_own):
    write_own("impl/mine", MINE)
    outcome = typed("--config-dir", "my", "impl=torch,mine", "impl.tile=8,16")
    assert [job.folder.name for job in outcome.jobs] == ["0", "1", "2"]
    records = [
        yaml.safe_load((job.folder / ".hydra" / "overrides.yaml").read_text("utf-8")) for job in outcome.jobs
    ]
    assert records == [["impl=torch"], ["impl=mine", "impl.tile=8"], ["impl=mine", "impl.tile=16"]]
    command = json.loads((outcome.jobs[0].folder.parent / "command.json").read_text("utf-8"))
    assert command["overrides"] == ["impl=torch,mine", "impl.tile=8,16"]


def test_a_key_that_no_option_has_is_refused_with_what_each_has(refusal):
    assert refusal("impl=torch", "impl.sort=true") == "unknown key impl.sort; impl=torch has no keys"
    assert refusal("impl=yours,mine,torch", "impl.srot=true") == (
        "unknown key impl.srot (did you mean impl.sort?); impl=yours has speed; "
        "impl=mine has any, how, part, sort, tile; impl=torch has no keys"
    )
    assert refusal("impl=torch,vllm", "impl.sort=true,false") == (
        "unknown key impl.sort; impl=torch has no keys; impl=vllm has no keys"
    )


def test_the_option_that_an_op_brings_is_the_one_that_is_asked(options, refusal):
    ((name, found),) = options("op=paged_decode", "impl.num_warps=4")
    assert (name, found["num_warps"]) == ("triton", 4)
    assert "impl=triton has num_stages" in refusal("op=paged_decode", "impl.sms=4")


@pytest.mark.parametrize("group", ["op", "layout"])
def test_other_groups_that_name_code_have_own_keys_too(typed, write_own, group):
    write_own(f"{group}/mine", "# Mine.\n_target_: kvexp.layout.flash.NHD\nturns: 3\n")
    line = ("--config-dir", "my", f"{group}=mine", "impl=torch")
    (job,) = typed(*line, f"{group}.turns=4").jobs
    assert getattr(job.experiment, group).options == {"turns": 4}
    assert f"{group}.turns must be a whole number, not 'x'" in typed(*line, f"{group}.turns=x").err
    assert f"unknown key {group}.turn (did you mean {group}.turns?); {group}=mine has turns" in (
        typed(*line, f"{group}.turn=1").err
    )


def test_what_is_typed_wins_over_a_named_sweeps_values_of_a_key(typed):
    outcome = typed(
        "experiment=triton_tuning", "impl.num_warps=4", "impl.tile_tokens=1", "impl.tile_columns=512"
    )
    (job,) = outcome.jobs
    assert [job.experiment.impl.options[key] for key in ("num_warps", "tile_tokens", "tile_columns")] == [
        4,
        1,
        512,
    ]
