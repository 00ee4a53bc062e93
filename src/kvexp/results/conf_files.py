"""Read the files of conf/ as they are, without composing them."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import yaml

from kvexp.bench.impl_hash import conf_dir
from kvexp.case import DEFAULTS
from kvexp.results.labels import OPTIONS


@functools.cache
def list_options(group: str) -> frozenset[str]:
    """List the options of a group."""
    folder = conf_dir() / group
    return frozenset(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def read_defaults() -> dict[str, Any]:
    """Return the default option of each group."""
    return {
        group: name
        for entry in read_config()["defaults"]
        if isinstance(entry, dict)
        for group, name in entry.items()
    }


@functools.cache
def read_config() -> dict[str, Any]:
    """Return config.yaml."""
    config: dict[str, Any] = yaml.safe_load((conf_dir() / "config.yaml").read_text("utf-8"))
    return config


@functools.cache
def read_option(group: str, name: str) -> dict[str, Any]:
    """Return the keys of an option, with those that it inherits."""
    option = _read_file(group, name)
    keys: dict[str, Any] = {}
    for entry in option.pop("defaults", ()):
        if isinstance(entry, str):
            keys |= read_option(group, entry)
    return keys | {key: value for key, value in option.items() if key != "_target_"}


@functools.cache
def read_brought(group: str, name: str) -> dict[str, str]:
    """Return the options of other groups that an option chooses, as an op does its layout."""
    return {
        key.split()[-1].lstrip("/").partition("@")[0]: chosen
        for entry in _read_file(group, name).get("defaults", ())
        if not isinstance(entry, str)
        for key, chosen in entry.items()
    }


def _read_file(group: str, name: str) -> dict[str, Any]:
    option: dict[str, Any] = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text("utf-8"))
    return option


def complete_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's or a plan's columns with what was not there when it was written.

    A column has its default, and an option what conf/ has. A choice that conf/ does not have is
    left as it is, as is one with other options.
    """
    columns = {**columns, **{key: default for key, default in DEFAULTS.items() if key not in columns}}
    options = {
        f"{group}_options": _add_missing_options(group, columns[group], columns[f"{group}_options"])
        for group in OPTIONS
        if columns.get(group) and columns.get(f"{group}_options")
    }
    return {**columns, **options}


@functools.lru_cache(1024)
def _add_missing_options(group: str, name: str, options: str) -> str:
    if name not in list_options(group):
        return options
    held, known = json.loads(options), read_option(group, name)
    missing = known.keys() - held.keys()
    if not missing or not held.keys() <= known.keys():
        return options
    return json.dumps({**held, **{key: known[key] for key in missing}}, sort_keys=True, separators=(",", ":"))
