"""Say which option of each group was chosen, and what was swept."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from kvexp.cli.groups import GROUPS
from kvexp.host.addresses import mask_secrets

_LONGEST_LIST = 1000  # letters of a swept key's values


def format_choices(choices: Mapping[str, Any]) -> str:
    """Return YAML with one key, `choices`, which has the option of each group.

    It is written after a configuration. There it is no key of that, so nobody can type another choice.
    """
    return yaml.safe_dump({"choices": {group: choices.get(group) for group in GROUPS}}, sort_keys=False)


def list_swept(overrides: Iterable[Override]) -> dict[str, str]:
    """List each swept key with its values; those of an interval, or of a long list, are as typed."""
    found = {}
    for override in overrides:
        if not override.is_sweep_override():
            continue
        text = typed = str(override.input_line).partition("=")[2]
        if override.is_discrete_sweep():
            text = ",".join(override.sweep_string_iterator())
        found[override.key_or_group] = mask_secrets(text if len(text) <= _LONGEST_LIST else typed)
    return found
