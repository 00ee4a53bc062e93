"""Write `--help`: the options and keys, read from the YAML files in conf/ and in the user's folder."""

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kvexp import __version__
from kvexp.bench.impl_hash import conf_dir
from kvexp.cli import commands
from kvexp.results.conf_files import read_defaults

GROUPS = (
    "op",
    "impl",
    "layout",
    "dtype",
    "kv_cache_dtype",
    "scale",
    "connector",
    "mode",
    "timer",
    "workload",
    "tracking",
    "experiment",
)
"""Every group, in the order of `--help`. Each is required but `experiment`."""

GROUPS_WITH_KEYS = ("workload", "timer", "tracking")
"""The groups whose options all have the same keys, which can be set."""

LAUNCHER = conf_dir() / "hydra" / "launcher" / "local.yaml"
"""The file of the launcher's keys."""

GROUPS_WITHOUT_KEYS = tuple(group for group in GROUPS if group not in (*GROUPS_WITH_KEYS, "experiment"))
"""The groups of which a row holds the option's name."""


def config_dirs(argv: Sequence[str]) -> list[Path]:
    """List the folders of options, the user's `--config-dir` first."""
    dirs = [conf_dir()]
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            value = value if equals else "".join(argv[i + 1 : i + 2])
            dirs.insert(0, Path(value))
    return dirs


def options(group: str, dirs: Sequence[Path]) -> dict[str, str]:
    """Return the options of a group, each with the first line of its file; the first folder wins."""
    found: dict[str, str] = {}
    for folder in dirs:
        for file in sorted((folder / group).rglob("*.yaml")):
            name = file.relative_to(folder / group).with_suffix("").as_posix()
            found.setdefault(name, _first_comment(file))
    return found


def text(dirs: Sequence[Path]) -> str:
    """Return the whole `--help`."""
    return _ABOUT.format(
        version=__version__, groups=_groups(dirs), keys=_keys(), commands=_commands(commands.names())
    )


def _commands(names: Mapping[str, str]) -> str:
    """Return the section of the subcommands, empty if there are none."""
    width = max(map(len, names), default=0)
    lines = [_entry(f"  {name:{width}}", comment) for name, comment in names.items()]
    head = "Commands (python -m kvexp COMMAND --help says more)"
    return "\n".join(["", head, *lines, ""]) if lines else ""


def _groups(dirs: Sequence[Path]) -> str:
    chosen = read_defaults()
    catalogue = {group: options(group, dirs) for group in GROUPS}
    width = max(len(name) for names in catalogue.values() for name in names)
    lines: list[str] = []
    for group, names in catalogue.items():
        lines.append(f"  {group}")
        for name, comment in names.items():
            mark = "*" if chosen.get(group) == name else " "
            lines.append(_entry(f"  {mark} {name:{width}}", comment))
    return "\n".join(lines)


def _keys() -> str:
    chosen = read_defaults()
    texts = {"": (conf_dir() / "config.yaml").read_text("utf-8")}
    for group in GROUPS_WITH_KEYS:
        own = (conf_dir() / group / f"{chosen[group]}.yaml").read_text("utf-8")
        texts[f"{group}."] = own + _section(texts[""], group)
    texts["hydra.launcher."] = LAUNCHER.read_text("utf-8")
    entries = [(prefix + key, line) for prefix, text in texts.items() for key, line in _settings(text)]
    width = max(len(key) for key, _ in entries)
    return "\n".join(_entry(f"  {key:{width}}", comment) for key, comment in entries)


def _entry(head: str, comment: str) -> str:
    indent = " " * (len(head) + 2)
    return textwrap.fill(comment, 100, initial_indent=f"{head}  ", subsequent_indent=indent)


def _first_comment(file: Path) -> str:
    for line in file.read_text("utf-8").splitlines():
        # Hydra wants its package header on the first line.
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def _section(content: str, key: str) -> str:
    """Return the block below a key of the main configuration, as the content of a file."""
    _, _, below = content.partition(f"\n{key}:\n")
    inside = list(itertools.takewhile(lambda line: line.startswith("  "), below.splitlines()))
    return "\n".join(["", *(line.removeprefix("  ") for line in inside)])


def _settings(content: str) -> Iterator[tuple[str, str]]:
    """Yield each scalar key of a file with the comment above it; a key without one shares the last."""
    comment: list[str] = []
    is_new = True
    for line in content.splitlines():
        key, colon, value = line.partition(":")
        if line.startswith("#"):
            comment = [line.lstrip("# ")] if is_new else [*comment, line.lstrip("# ")]
            is_new = False
        elif not line:
            comment, is_new = [], True
        elif colon and value.strip() and not key.startswith((" ", "_")):
            yield key, " ".join(comment)
            is_new = True


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

Keys (the same ones for every option of a group)
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
