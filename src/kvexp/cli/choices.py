"""Say which option of each group was chosen."""

from collections.abc import Mapping
from typing import Any

import yaml

from kvexp.cli.help import GROUPS


def format_choices(choices: Mapping[str, Any]) -> str:
    """Return YAML with one key, `choices`, which has the option of each group.

    It is written after a configuration. There it is no key of that, so nobody can type another choice.
    """
    return yaml.safe_dump({"choices": {group: choices.get(group) for group in GROUPS}}, sort_keys=False)
