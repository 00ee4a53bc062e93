"""Write values as Hydra's overrides, and tell what an override that was kept in a file may do."""

import json
import re
from typing import Any

_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_][\w./:-]*", re.ASCII | re.IGNORECASE)
TAGS = "tracking.tags"
"""The key of the user's own tags of runs."""

_NO_TRACKING = ("tracking=none", "tracking='none'", 'tracking="none"')


def quote_value(value: Any) -> str:
    r"""Write a value as Hydra's overrides and OmegaConf read it back: `null`, `[1,2]`, `'it\'s'`.

    A text in quotes has its quotes escaped, and the backslashes before one or at its end doubled; a `${` in
    it is a text, not a reference.
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(quote_value, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value):
        return value
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    escaped = re.sub(r"(\\+)('|\Z)", r"\1\1\2", literal)
    return "'" + escaped.replace("'", r"\'") + "'"


def get_key(text: str) -> str:
    """Return the key of an override, such as `workload.num_heads`."""
    return text.lstrip("+~").partition("=")[0]


def is_about_tracking(text: str) -> bool:
    """Return whether the override says where runs go."""
    return re.split(r"[.@/:]", get_key(text))[0] == "tracking"


def is_place(text: str) -> bool:
    """Return whether the override names a store, which no file of a sweep's folder may choose.

    `tracking=none` names none, and what `is_label` accepts only what the runs are called there.
    """
    return is_about_tracking(text) and text not in _NO_TRACKING and not is_label(text)


def is_label(text: str) -> bool:
    """Return whether the override names the experiment that runs go to, or tags them."""
    return get_key(text) == "tracking.experiment" or is_tag(text)


def is_tag(text: str) -> bool:
    """Return whether the override tags runs: `tracking.tags.team=x`, or `tracking.tags={team:x}`."""
    key = get_key(text)
    return key == TAGS or key.startswith(f"{TAGS}.")


def is_reference(text: str) -> bool:
    r"""Return whether the override may refer to something else: `${oc.env:HOME}`, `$\{oc.env:HOME\}`."""
    return "${" in text.replace("\\", "")  # Hydra takes the backslashes away


def is_plain(text: str) -> bool:
    """Return whether the override only sets a value: no flag, nothing of Hydra's, no class, no reference."""
    own = not text.startswith("-") and not get_key(text).startswith("hydra")
    return own and "_target_" not in text and not is_reference(text)
