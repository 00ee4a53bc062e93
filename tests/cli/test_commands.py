"""Subcommands are files: the name, the line in --help, and what runs."""

import sys

import pytest

from kvexp import cli
from kvexp.cli import commands, groups, help
from kvexp.errors import ConfigError


@pytest.fixture
def command_file(tmp_path, monkeypatch):
    """A subcommand `greet`, in a folder that Python looks for modules of the package in."""
    file = tmp_path / "greet.py"
    file.write_text('"""Says who was named.\n\nMore.\n"""\n\nsaid = []\n\n\ndef main(argv):\n'
                    '    said.append(argv)\n    return 7\n')  # fmt: skip
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(commands, "__path__", [str(tmp_path)])
    yield file
    for name in ("greet", "refuse"):
        sys.modules.pop(f"kvexp.cli.commands.{name}", None)


def test_a_file_is_a_command_with_its_exit_code(command_file):
    assert cli.dispatch(["greet", "a", "--help"]) == 7


def test_its_first_line_is_in_the_help(command_file):
    assert commands.names() == {"greet": "Says who was named."}
    out = help.text([groups.conf_dir()])
    assert "Commands (python -m kvexp COMMAND --help says more)\n  greet  Says who was named.\n" in out


def test_what_it_refuses_is_exit_code_2(command_file, capsys):
    command_file.with_name("refuse.py").write_text(
        '"""Refuses."""\n\nfrom kvexp.errors import ConfigError\n\n\n'
        'def main(argv):\n    raise ConfigError("no")\n'
    )
    assert cli.dispatch(["refuse"]) == 2
    assert capsys.readouterr().err == "kvexp: no\n"


def test_a_word_that_is_no_command_is_refused():
    with pytest.raises(ConfigError, match="unknown command 'greet'"):
        cli._run(["greet"])


def test_every_command_has_a_line_and_a_main():
    for name, line in commands.names().items():
        assert line.endswith(".")
        assert callable(commands.importlib.import_module(f"kvexp.cli.commands.{name}").main)
