"""Derive from rows alone the overrides that repeat their curve, by the defaults in conf/."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvexp.case import SLOTS, Case
from kvexp.column import Name, columns_of
from kvexp.experiment import MEANING
from kvexp.measurement import Row
from kvexp.results.conf_files import list_options, read_brought, read_config, read_defaults, read_option
from kvexp.results.labels import OPTIONS, read_options
from kvexp.results.overrides import quote_value

_GROUPS = tuple(
    name for name, column in columns_of(Case).items() if isinstance(column, Name) and name != "device"
)
_REFERENCE = re.compile(r"\$\{\.(\w+)\}")  # to another key of the workload


def derive_overrides(rows: Sequence[Row]) -> list[str] | None:
    """Return the overrides that compose the curve of these rows: only what differs from the defaults.

    The workload's name is left out where conf/ has none of that name: its sizes say everything. None where
    conf/ has no such option, so that nothing here could repeat the curve.
    """
    row = rows[0]
    meaning = MEANING["cpu" if row.get("device") == "cpu" else "cuda"]
    chosen, usual = {group: row.get(group) for group in _GROUPS}, read_defaults()
    chosen |= {group: usual[group] for group in ("mode", "timer") if chosen[group] == meaning[group]}
    if chosen["workload"] not in list_options("workload"):
        chosen["workload"] = usual["workload"]
    if any(chosen[group] not in list_options(group) for group in _GROUPS):
        return None
    usual |= read_brought("op", chosen["op"])
    overrides = [
        f"{group}={quote_value(chosen[group])}" for group in _GROUPS if chosen[group] != usual[group]
    ]
    if row.get("device") not in (None, "auto", MEANING["cuda"]["device"]):
        overrides.append(f"device={quote_value(row['device'])}")
    for group in OPTIONS:
        options = read_options(row, group)
        known = read_option(group, chosen[group])
        if not options.keys() <= known.keys():
            return None
        overrides += _list_changes(group, options, known)
    sizes = {**read_config()["workload"], **read_option("workload", chosen["workload"])}
    tokens, usual_tokens = list(dict.fromkeys(row["num_tokens"] for row in rows)), sizes.pop("num_tokens")
    held = {key: row[key] for key in sizes if row.get(key) is not None}
    if held.get("batch"):  # which gives these two
        del held["slots"]
        tokens = usual_tokens
    elif "slots" in held and held["slots"] not in SLOTS:
        return None
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
