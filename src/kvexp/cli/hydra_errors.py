"""Explain in one sentence why a configuration could not be composed."""

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, KeyValidationError, OmegaConfBaseException

from kvexp.cli.groups import describe_unknown_option
from kvexp.cli.schema import NO_TEXT, describe_unknown_key

COMPOSE_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    # Hydra raises plain ones for an override of the wrong type, for plugins and for folders.
    AssertionError,
    ValueError,
    RuntimeError,
    OSError,
)
"""Errors that Hydra raises while it composes; none of our own code that could raise them runs then."""


def explain(error: BaseException) -> str:
    """Say what was asked and what is possible."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return describe_unknown_option(group, name, [str(option) for option in error.options])
    key_error = next((e for e in (error, error.__cause__) if isinstance(e, _KEY_ERRORS)), None)
    if key_error is not None and key_error.full_key:
        prefix, _, key = str(key_error.full_key).rpartition(".")
        return describe_unknown_key(prefix, key, _list_keys(key_error.parent_node))
    if "An item is already at" in str(error):
        key = str(error).partition("already at '")[2].partition("'")[0]
        return f"{key} is there already; write {key}=VALUE without a +"
    if isinstance(error.__cause__, KeyValidationError):
        return f"a YAML has a key {NO_TEXT} ({_first_line(error.__cause__)})"
    if isinstance(error, AssertionError) and not str(error):
        return "the `defaults` of a YAML hold something else than `GROUP: OPTION`, two texts"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"cannot read {mark.name}, line {mark.line + 1}: {error.problem}"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {_first_line(error)}"
    return _shorten(error)


_KEY_ERRORS = (ConfigAttributeError, ConfigKeyError)


def _list_keys(parent: object) -> list[str]:
    if not isinstance(parent, DictConfig):
        return []
    return [str(key) for key in parent if key not in ("hydra", "_target_")]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _shorten(error: BaseException) -> str:
    """Return the message as one line, without the search path and the links that Hydra adds."""
    lines: list[str] = []
    for line in str(error).splitlines():
        if line.lstrip().startswith(("Config search path", "See ", "full_key:")):
            break
        if line.strip():
            lines.append(line.strip())
    if isinstance(error.__cause__, OmegaConfBaseException):
        lines.append(_first_line(error.__cause__))
    return " ".join(lines) or type(error).__name__
