"""`--help` lists every option with the first line of its file."""

import re
from dataclasses import fields

import pytest

from kvexp.case import Sizes
from kvexp.cli import help
from kvexp.column import Word, columns_of
from kvexp.experiment import WorkloadSpec
from kvexp.results.conf_files import read_defaults


@pytest.mark.parametrize("group", help.GROUPS)
def test_every_option_is_listed_with_its_line(typed, group):
    lines = " ".join(typed("--help").out.split())
    found = help.options(group, [help.conf_dir()])
    assert found
    for name, comment in found.items():
        assert comment
        assert f"{name} {comment}" in lines


def test_the_defaults_are_marked(typed):
    starred = [line.split()[1] for line in typed("-h").out.splitlines() if line.startswith("  * ")]
    assert starred == [read_defaults()[group] for group in help.GROUPS[:-1]]


def test_the_users_line_the_keys_and_the_exit_codes_are_there(typed):
    out = typed("--help").out
    assert "python -m kvexp impl=cuda layout=HND -m dtype=half,bfloat16" in out
    sizes = [f"workload.{field.name}" for field in fields(WorkloadSpec) if field.name != "name"]
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
