"""The text of docs/reference.md: what can be typed and what a row holds, from conf/ and the declarations.

`python -m tests.helpers.reference > docs/reference.md` writes it; tests/test_reference.py compares it.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from kvexp.cli import commands, groups, keys
from kvexp.measurement import COLUMNS
from kvexp.results.conf_files import read_defaults

CONF = groups.conf_dir()
SIZES = ("num_tokens", "num_heads", "num_query_heads", "head_size", "block_size", "num_blocks")
"""The keys of a workload's own file."""


def text() -> str:
    """The page."""
    return "\n".join([_ABOUT, _commands(), *map(_group, groups.GROUPS), _keys(), _columns(), _LOADED])


def _commands() -> str:
    rows = [(f"`kvexp {name}`", line) for name, line in commands.names().items()]
    return _section("Commands", _table(("command", "what it does"), rows), _COMMANDS)


def _group(group: str) -> str:
    chosen = read_defaults().get(group)
    lines = groups.describe_options(group, [CONF])
    head: Sequence[str] = (group, "what it is")
    rows = [[f"`{name}`{' (default)' * (name == chosen)}", line] for name, line in lines.items()]
    if group in _MORE:
        more, cells = _MORE[group]
        head = (*head, *more)
        rows = [[*row, *cells(_yaml(group, name))] for row, name in zip(rows, lines, strict=True)]
    return _section(f"{group}=", _table(head, rows))


def _sizes(values: Mapping[str, Any]) -> list[str]:
    return [_value(values[key]) if key in values else "" for key in SIZES]


def _sweeps(values: Mapping[str, Any]) -> list[str]:
    """The choices of a preset, as they would be typed."""
    groups = [pair for entry in values["defaults"] for pair in entry.items()]
    fixed = [f"{key.removeprefix('override /')}={option}" for key, option in groups]
    swept = [f"{key}={value}" for key, value in values["hydra"]["sweeper"]["params"].items()]
    return [f"`{' '.join([*fixed, *swept])}`"]


def _keys() -> str:
    rows = [(f"`{key.name}`", _default(key), key.kind, f"{of}{key.meaning}") for of, key in _list_keys()]
    return _section("Keys", _KEYS, _table(("key", "default", "what it may be", "meaning"), rows))


def _list_keys() -> Iterator[tuple[str, keys.Key]]:
    """Every key, and for one of an op or an implementation the words that say whose it is."""
    yield from (("", key) for key in keys.list_keys([CONF]))
    for group in ("op", "impl"):
        for name in groups.list_options(group, [CONF]):
            own = keys.list_option_keys(group, name, [CONF])
            yield from ((f"Of `{group}={name}`: ", key) for key in own)


def _default(key: keys.Key) -> str:
    if not isinstance(key.default, str):
        return key.default_text
    is_reference = key.default.startswith("${")
    return f"that of `{key.default.strip('${.}')}`" if is_reference else f"`{key.default}`"


def _columns() -> str:
    rows = [(f"`{name}`", column.unit, column.doc) for name, column in COLUMNS.items()]
    return _section("Columns of a row", _ROWS, _table(("column", "unit", "what it holds"), rows))


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]} .. {value[-1]}"
    if isinstance(value, str):
        return f"that of `{value.strip('${.}')}`" if value.startswith("${") else f"`{value}`"
    return json.dumps(value)


def _yaml(group: str, name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text("utf-8"))
    return values


def _section(title: str, *parts: str) -> str:
    return "\n\n".join([f"## {title}", *parts]) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    plain = ([cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows)
    cells = [head, ["---"] * len(head), *plain]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


_MORE = {"workload": (SIZES, _sizes), "experiment": (("it types",), _sweeps)}
"""The groups whose tables have more columns, and the cells of those."""

_ABOUT = """\
# Options, keys and columns

Made from conf/ and src/kvexp by `python -m tests.helpers.reference > docs/reference.md`; a test fails when
they differ. `python -m kvexp --help` lists the options and keys, too, with those of your `--config-dir`.
"""

_COMMANDS = "Each has a `--help` of its own. Without a command, kvexp measures what the line chooses."

_KEYS = """\
Typed as `key=value`. Every option of `workload`, `timer` and `tracking` has the keys of its group; the
defaults here are the default option's. [measuring.md](measuring.md) says more of workloads and timers."""

_ROWS = """\
Units end the names. What does not apply, or is not known, is null (missing in pandas); only a point that is
`ok` has a latency."""

_LOADED = """\
`kvexp.load` and `kvexp export` add `sweep` (its folder), `command` (what repeats the curve), and a column for
each option in `op_options`, `impl_options` and `timer_options`, such as `timer_max_seconds`.
"""


if __name__ == "__main__":
    sys.stdout.write(text())
