"""`--help` lists every option with the first line of its file."""

import re

import pytest

from kvexp.case import Sizes
from kvexp.cli import groups
from kvexp.column import Word, columns_of
from kvexp.experiment import WorkloadSpec
from kvexp.results.conf_files import read_defaults


@pytest.mark.parametrize("group", groups.GROUPS)
def test_every_option_is_listed_with_its_line(typed, group):
    lines = " ".join(typed("--help").out.split())
    found = groups.describe_options(group, [groups.conf_dir()])
    assert found
    for name, comment in found.items():
        assert comment
        assert f"{name} {comment}" in lines


def test_the_defaults_are_marked(typed):
    starred = [line.split()[1] for line in typed("-h").out.splitlines() if line.startswith("  * ")]
    assert starred == [read_defaults()[group] for group in groups.GROUPS[:-1]]


def test_the_users_line_the_keys_and_the_exit_codes_are_there(typed):
    out = typed("--help").out
    assert "python -m kvexp impl=cuda layout=HND -m dtype=half,bfloat16" in out
    sizes = [f"workload.{key}" for key in columns_of(WorkloadSpec)]
    for key in ("device", *sizes, "timer.relative_error", "tracking.uri"):
        assert len(re.findall(rf"^  {re.escape(key)} +\S", out, re.MULTILINE)) == 1, key
    assert "Exit codes" in out
    assert max(map(len, out.splitlines())) <= 110


def test_a_keys_line_names_each_word_that_it_can_be(typed):
    out = " ".join(typed("--help").out.split())
    declared = columns_of(Sizes).items()
    for key, words in ((key, column.words) for key, column in declared if isinstance(column, Word)):
        line = out.partition(f" workload.{key} ")[2].partition(" workload.")[0]
        assert all(re.search(rf"\b{word}\b", line) for word in words), key


@pytest.mark.parametrize("flag", [["--config-dir", "my"], ["-cd", "my"], ["--config-dir=my"]])
def test_an_option_of_the_users_own_is_listed(typed, write_own, flag):
    write_own("impl/mine", "# The fastest of all.\n_target_: my.Mine\n")
    assert "The fastest of all." in typed("--help", *flag).out


def test_each_key_has_its_default_and_what_it_may_be(typed):
    out = " ".join(typed("--help").out.split())
    for name, ending in {
        "workload.num_heads": "[a whole number; default 128]",
        "workload.head_size_v": "[a whole number; default that of head_size]",
        "workload.num_tokens": "[a whole number, or a list of them; default 2 .. 65536]",
        "timer.relative_error": "[a positive number; default 0.005]",
        "timeout_s": "[a positive number or null; default 600]",
        "fail_fast": "[true or false; default false]",
    }.items():
        assert out.partition(f" {name} ")[2].partition("]")[0].endswith(ending.removesuffix("]")), name


def test_beside_an_option_it_describes_that_alone(typed, write_own):
    write_own("impl/mine", "# Mine.\n_target_: my.Mine\n# Tokens of a tile.\ntile: 4\nhow: null\n")
    lines = typed("impl=mine,TORCH", "dtype=fp16", "--help", "--config-dir", "my").out.splitlines()
    assert [line for line in lines if line] == [
        "impl=mine  Mine.",
        "  impl.tile  Tokens of a tile. [a whole number; default 4]",
        "  impl.how   Tokens of a tile. [default null]",
        "impl=torch  Indexing in PyTorch: the reference, which runs everywhere.",
        "  It has no keys.",
        "dtype=half  16-bit IEEE floats, 2 bytes each. Also float16, fp16.",
        "  It has no keys.",
        "* is the default. kvexp --help lists all groups, keys, commands and flags.",
    ]


def test_beside_a_workload_its_own_values_are_the_defaults(typed):
    out = " ".join(typed("workload=tiny", "--help").out.split())
    for key, default in {"num_heads": 2, "context": 16, "num_layers": 1}.items():
        assert out.partition(f" workload.{key} ")[2].partition("]")[0].endswith(f"; default {default}")


def test_a_group_alone_lists_its_options(typed):
    assert typed("mode", "--help").out.splitlines()[:2] == [
        "  mode",
        f"  * auto       {groups.describe_options('mode', [groups.conf_dir()])['auto']}",
    ]
