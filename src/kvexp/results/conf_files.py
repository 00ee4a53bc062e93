"""Read the files of conf/ as they are, without composing them."""

import functools
import json
from typing import Any

import yaml

from kvexp.bench.impl_hash import conf_dir


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
    """Return the keys of an option, with those that it inherits, and the layout that an op brings."""
    option: dict[str, Any] = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text("utf-8"))
    keys: dict[str, Any] = {}
    for entry in option.pop("defaults", ()):
        if isinstance(entry, str):
            keys |= read_option(group, entry)
        else:
            keys |= {key.split()[-1].lstrip("/").partition("@")[0]: name for key, name in entry.items()}
    return keys | {key: value for key, value in option.items() if key != "_target_"}


@functools.lru_cache(1024)
def add_missing_options(group: str, name: str, options: str) -> str:
    """Return the options of a choice, JSON as a row holds it, with those that its file has gained since.

    A choice that conf/ does not have is left as it is, as is one with other options.
    """
    if name not in list_options(group):
        return options
    held, known = json.loads(options), read_option(group, name)
    missing = known.keys() - held.keys()
    if not missing or not held.keys() <= known.keys():
        return options
    return json.dumps({**held, **{key: known[key] for key in missing}}, sort_keys=True, separators=(",", ":"))
