"""Derive from rows alone the overrides that repeat their curve, by the defaults in conf/."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from kvexp.bench.impl_hash import conf_dir
from kvexp.case import Case
from kvexp.column import Name, columns_of
from kvexp.experiment import MEANING
from kvexp.measurement import Row
from kvexp.results.labels import OPTIONS, read_options
from kvexp.results.overrides import quote_value

_GROUPS = tuple(
    name for name, column in columns_of(Case).items() if isinstance(column, Name) and name != "device"
)
_REFERENCE = re.compile(r"\$\{\.(\w+)\}")  # to another key of the workload


def derive_overrides(rows: Sequence[Row]) -> list[str] | None:
    """Return the overrides that compose the curve of these rows: only what differs from the defaults.

    The workload's name is left out where conf/ has none of that name: its sizes say everything.

    Returns:
        None where conf/ has no such option, so that nothing here could repeat the curve.
    """
    row = rows[0]
    meaning = MEANING["cpu" if row.get("device") == "cpu" else "cuda"]
    chosen, usual = {group: row.get(group) for group in _GROUPS}, _read_defaults()
    chosen |= {group: usual[group] for group in ("mode", "timer") if chosen[group] == meaning[group]}
    if chosen["workload"] not in _list_options("workload"):
        chosen["workload"] = usual["workload"]
    if any(chosen[group] not in _list_options(group) for group in _GROUPS):
        return None
    usual["layout"] = _read_option("op", chosen["op"]).get("layout", usual["layout"])
    overrides = [
        f"{group}={quote_value(chosen[group])}" for group in _GROUPS if chosen[group] != usual[group]
    ]
    if row.get("device") not in (None, "auto", MEANING["cuda"]["device"]):
        overrides.append(f"device={quote_value(row['device'])}")
    for group in OPTIONS:
        options = read_options(row, group)
        known = _read_option(group, chosen[group])
        if not options.keys() <= known.keys():
            return None
        overrides += _list_changes(group, options, known)
    sizes = {**_read_config()["workload"], **_read_option("workload", chosen["workload"])}
    tokens, usual_tokens = list(dict.fromkeys(row["num_tokens"] for row in rows)), sizes.pop("num_tokens")
    held = {key: row[key] for key in sizes if row.get(key) is not None}
    overrides += _list_changes("workload", held, sizes)
    if sorted(tokens) != sorted(usual_tokens):
        overrides.append(f"workload.num_tokens={quote_value(tokens)}")
    return overrides


def _list_changes(group: str, held: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """List an override for each key whose value is not the usual one."""
    overrides = []
    for key, value in held.items():
        reference = _REFERENCE.fullmatch(str(usual[key]))
        meant = held.get(reference[1]) if reference else usual[key]
        if (value, isinstance(value, bool)) != (meant, isinstance(meant, bool)):
            overrides.append(f"{group}.{key}={quote_value(value)}")
    return overrides


@functools.cache
def _list_options(group: str) -> frozenset[str]:
    """List the options of a group of our own."""
    folder = conf_dir() / group
    return frozenset(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def _read_defaults() -> dict[str, Any]:
    """Return the default option of each group."""
    return {
        group: name
        for entry in _read_config()["defaults"]
        if isinstance(entry, dict)
        for group, name in entry.items()
    }


@functools.cache
def _read_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((conf_dir() / "config.yaml").read_text("utf-8"))
    return config


@functools.cache
def _read_option(group: str, name: str) -> dict[str, Any]:
    """Return the keys of an option, with those that it inherits, and the layout that an op brings."""
    option: dict[str, Any] = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text("utf-8"))
    keys: dict[str, Any] = {}
    for entry in option.pop("defaults", ()):
        if isinstance(entry, str):
            keys |= _read_option(group, entry)
        else:
            keys |= {key.split()[-1].lstrip("/").partition("@")[0]: name for key, name in entry.items()}
    return keys | {key: value for key, value in option.items() if key != "_target_"}
