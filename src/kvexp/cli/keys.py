"""List the keys that can be typed: each with its default, what it may be and what it means."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kvexp.bench.impl_hash import conf_dir
from kvexp.cli import schema
from kvexp.cli.groups import CODE, GROUPS_WITH_KEYS, LAUNCHER, list_options
from kvexp.column import ANY, Column, Text, columns_of
from kvexp.errors import ConfigError
from kvexp.experiment import WorkloadSpec
from kvexp.results.conf_files import read_defaults
from kvexp.sweep.settings import SweepSettings

_DECLARED: dict[str, Mapping[str, Column]] = {
    "": {**columns_of(SweepSettings), "device": Text()},
    "workload.": columns_of(WorkloadSpec),
    "timer.": schema.TIMER,
    "tracking.": schema.TRACKING,
}
"""Declare what keys may be; what others may be is in the comment that says what they mean."""

_KINDS = {"workload.num_tokens": "a whole number, or a list of them"}


@dataclass(frozen=True)
class Key:
    """A key that can be typed.

    Attributes:
        name: As typed.
        default: Its value in the YAML.
        kind: What it may be, in words; empty where its meaning says so.
        meaning: The comment above it.
    """

    name: str
    default: Any
    kind: str
    meaning: str

    @property
    def default_text(self) -> str:
        """The default as it is typed; a list by its ends, a reference by what it refers to."""
        if isinstance(self.default, list):
            return f"{self.default[0]} .. {self.default[-1]}"
        if isinstance(self.default, str):
            is_reference = self.default.startswith("${")
            return f"that of {self.default.strip('${.}')}" if is_reference else self.default
        return json.dumps(self.default)


def list_keys(dirs: Sequence[Path]) -> list[Key]:
    """List the keys that do not depend on a chosen option, with the default options' values."""
    found = _read_keys("", _read_main())
    for group in GROUPS_WITH_KEYS:
        found += list_option_keys(group, read_defaults()[group], dirs)
    return found + _read_keys("hydra.launcher.", LAUNCHER.read_text("utf-8"))


def list_option_keys(group: str, name: str, dirs: Sequence[Path]) -> list[Key]:
    """List the keys of an option that can be typed, also those that each option of its group has."""
    if group not in (*GROUPS_WITH_KEYS, *CODE):
        return []
    return _read_keys(f"{group}.", *_read_option(group, name, dirs), _read_section(_read_main(), group))


def _read_option(group: str, name: str, dirs: Sequence[Path]) -> list[str]:
    """Return the content of an option's file, then those of the options that it inherits from.

    Raises:
        ConfigError: One of them is no YAML with keys.
    """
    file = list_options(group, dirs).get(name)
    try:
        text = file.read_text("utf-8") if file else ""
        parents = (yaml.safe_load(text) or {}).get("defaults") or ()
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file}, which must be a YAML with keys") from error
    inherited = [
        _read_option(group, one, dirs) for one in parents if isinstance(one, str) and one != "_self_"
    ]
    return [text, *itertools.chain(*inherited)]


def _read_main() -> str:
    return (conf_dir() / "config.yaml").read_text("utf-8")


def _read_section(content: str, key: str) -> str:
    """Return the block below a key of the main configuration, as the content of a file."""
    _, _, below = content.partition(f"\n{key}:\n")
    inside = list(itertools.takewhile(lambda line: line.startswith("  "), below.splitlines()))
    return "\n".join(["", *(line.removeprefix("  ") for line in inside)])


def _read_keys(prefix: str, *contents: str) -> list[Key]:
    """Read the keys of files; the first one that has a key counts."""
    found: dict[str, Key] = {}
    for name, value, meaning in itertools.chain(*map(_read_lines, contents)):
        found.setdefault(name, Key(prefix + name, value, _describe_kind(prefix, name, value), meaning))
    return list(found.values())


def _describe_kind(prefix: str, name: str, value: Any) -> str:
    column = _DECLARED[prefix].get(name, ANY) if prefix in _DECLARED else schema.find_type(value)
    return _KINDS.get(prefix + name) or ("" if column is ANY else column.describe())


def _read_lines(content: str) -> Iterator[tuple[str, Any, str]]:
    """Yield each scalar key of a file, its value and the comment above it; one without shares the last."""
    comment: list[str] = []
    is_new = True
    for line in content.splitlines():
        key, colon, value = line.partition(":")
        if line.startswith("# @"):
            continue
        if line.startswith("#"):
            comment = [line.lstrip("# ")] if is_new else [*comment, line.lstrip("# ")]
            is_new = False
        elif not line:
            comment, is_new = [], True
        elif colon and value.strip() and not key.startswith(" "):
            is_new = True
            if key != "_target_":
                yield key, yaml.safe_load(line)[key], " ".join(comment)
