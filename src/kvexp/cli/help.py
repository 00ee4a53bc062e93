"""Write `--help`: the options and keys, read from the YAML files in conf/ and in the user's folder."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kvexp import __version__
from kvexp.cli import commands
from kvexp.cli.groups import GROUPS, describe_options, describe_unknown_option, find_option
from kvexp.cli.keys import Key, list_keys, list_option_keys
from kvexp.errors import ConfigError
from kvexp.results.conf_files import read_defaults


def text(dirs: Sequence[Path], words: Sequence[str] = ()) -> str:
    """Return the help on the groups and options among the typed words; on everything where there are none.

    Raises:
        ConfigError: An option among them is not there.
    """
    asked = [word for word in words if word.partition("=")[0] in GROUPS]
    if asked:
        return "\n".join([_describe(word, dirs) for word in asked] + [_MORE])
    return _ABOUT.format(
        version=__version__,
        groups="\n".join(_list_group(group, dirs) for group in GROUPS),
        keys=_list_entries(list_keys(dirs)),
        commands=_commands(commands.names()),
    )


def _describe(word: str, dirs: Sequence[Path]) -> str:
    """Describe the options that a word names, with their keys; all options of a group that is typed alone."""
    group, equals, names = word.partition("=")
    if not equals:
        return f"{_list_group(group, dirs)}\n"
    lines = describe_options(group, dirs)
    found = []
    for typed in names.split(","):
        name = find_option(group, typed, dirs)
        if name is None:
            raise ConfigError(describe_unknown_option(group, typed, lines))
        keys = _list_entries(list_option_keys(group, name, dirs))
        found.append("\n".join([_entry(f"{group}={name}", lines[name]), keys or "  It has no keys.", ""]))
    return "\n".join(found)


def _commands(names: Mapping[str, str]) -> str:
    """Return the section of the subcommands, empty if there are none."""
    width = max(map(len, names), default=0)
    lines = [_entry(f"  {name:{width}}", comment) for name, comment in names.items()]
    head = "Commands (python -m kvexp COMMAND --help says more)"
    return "\n".join(["", head, *lines, ""]) if lines else ""


def _list_group(group: str, dirs: Sequence[Path]) -> str:
    chosen, lines = read_defaults().get(group), describe_options(group, dirs)
    width = max(map(len, lines), default=0)
    entries = (
        _entry(f"  {'*' if name == chosen else ' '} {name:{width}}", line) for name, line in lines.items()
    )
    return "\n".join([f"  {group}", *entries])


def _list_entries(keys: Iterable[Key]) -> str:
    entries = [
        (key.name, f"{key.meaning} [{key.kind}{'; ' * bool(key.kind)}default {key.default_text}]")
        for key in keys
    ]
    width = max((len(name) for name, _ in entries), default=0)
    return "\n".join(_entry(f"  {name:{width}}", line) for name, line in entries)


def _entry(head: str, comment: str) -> str:
    indent = " " * (len(head) + 2)
    return textwrap.fill(comment, 100, initial_indent=f"{head}  ", subsequent_indent=indent)


_MORE = """\
* is the default. kvexp --help lists all groups, keys, commands and flags.
"""

_ABOUT = """\
kvexp {version}: which implementation, layout, dtype and mode writes a paged KV cache fastest, and is
it correct? Each curve is verified byte for byte, timed, written to disk as rows and tracked in MLflow.

Usage: python -m kvexp [GROUP=OPTION ...] [KEY=VALUE ...] [FLAG ...]

  python -m kvexp experiment=quickstart
  python -m kvexp impl=torch workload=tiny                        one curve over num_tokens
  python -m kvexp impl=cuda layout=HND -m dtype=half,bfloat16     a sweep: one curve per dtype
  python -m kvexp impl=cuda,triton layout=NHD,HND                 commas sweep without -m, too
  python -m kvexp workload=llama3_8b workload.num_heads=8,32 'workload.num_tokens=[1,64]'
  python -m kvexp impl=mine --config-dir my_conf                  your class, named in my_conf/impl/mine.yaml
  python -m kvexp impl=triton --cfg job                           print what would be measured

Groups and their options (* is the default)
{groups}

Keys (the same ones for every option of a group; kvexp impl=triton --help lists an option's own)
{keys}
{commands}
Flags
  -m, --multirun           sweep; always on
  -r, --run                measure one curve; refuse more
  -cd, --config-dir DIR    a folder of your own options, laid out like conf/
  -cn, --config-name NAME  another primary config than config.yaml
  -c, --cfg job            print the configuration, measure nothing; with --resolve, every value
  -i, --info WHAT          print Hydra's defaults, searchpath, ...; --hydra-help for the rest
  -sc install=bash         print what lets a shell complete the command kvexp; also zsh, fish
  --version                print kvexp's version

Exit codes
  0  a point is ok or verified, and none is wrong     1  a point is incorrect or failed
  2  what was typed is wrong; nothing was measured    3  every point was skipped
HYDRA_FULL_ERROR=1 in the environment shows the traceback of exit code 2.
"""
