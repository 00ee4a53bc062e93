"""docs/reference.md says what conf/ and the declarations say, and knows everything that can be typed."""

from pathlib import Path

import pytest

from kvexp.cli import commands, groups
from kvexp.column import columns_of
from kvexp.experiment import WorkloadSpec
from kvexp.measurement import COLUMNS
from tests.helpers import compose, reference

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"


def rows(title):
    """The cells of the table of a section, by the word that each row begins with."""
    section = PAGE.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: [cell.strip() for cell in line.split(" | ")] for line in lines}


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text("utf-8") == reference.text(), (
        "write it: python -m tests.helpers.reference > docs/reference.md"
    )


@pytest.mark.parametrize("group", groups.GROUPS)
def test_every_option_of_a_group_has_a_line(group):
    named = groups.describe_options(group, [groups.conf_dir()])
    assert {name: cells[1].rstrip(" |") for name, cells in rows(f"{group}=").items()} == named


def test_every_column_is_explained():
    assert [name for name, column in COLUMNS.items() if not column.doc] == []


def test_every_command_has_a_line():
    assert {name.removeprefix("kvexp ") for name in rows("Commands")} == set(commands.names())


def test_every_key_that_a_configuration_has_is_there_with_a_meaning():
    made = compose.experiment()
    keys = {f"workload.{key}" for key in columns_of(WorkloadSpec)}
    keys |= {f"timer.{key}" for key in made.timer.options} | {f"impl.{key}" for key in made.impl.options}
    found = rows("Keys")
    assert keys | {"device", "resume", "timeout_s", "tracking.uri"} <= set(found)
    assert [key for key, cells in found.items() if not cells[3].rstrip(" |")] == []
