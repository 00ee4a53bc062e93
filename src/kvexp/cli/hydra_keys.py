"""Check Hydra's own keys and groups: each works as in Hydra, or is refused in one sentence.

docs/hydra.md has the same list for readers.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from kvexp.cli import groups
from kvexp.errors import ConfigError

MODE = "hydra.mode"
"""The key that asks for one curve (RUN) or for a sweep (MULTIRUN)."""

_WORKING = (
    "hydra.sweep.dir",
    "hydra.searchpath",
    "hydra.job.name",
    "hydra.job.config.override_dirname",
    "hydra.launcher",
    "hydra.sweeper",
    MODE,
)
"""Keys that kvexp goes by, each with all keys inside it that are not refused."""

_NO_LOG = "kvexp writes no log; HYDRA_FULL_ERROR=1 shows a traceback of what is wrong with a command"
_SWEEPS = "one curve is a sweep, too; hydra.sweep.dir=FOLDER says where the sweep goes"
_FILLED = "Hydra fills it in"

_PARAMS = "hydra.sweeper.params"

_REFUSED = {
    "hydra.run": _SWEEPS,
    "hydra.output": _SWEEPS,
    "hydra.sweep.subdir": (
        "every curve has a folder of its own; hydra.sweep.dir=FOLDER says where the sweep goes"
    ),
    _PARAMS: "a sweep is typed as impl=cuda,triton",
    "hydra.sweeper.max_batch_size": "a sweep is checked and measured as one; leave it out",
    "hydra.verbose": _NO_LOG,
    "hydra.job_logging": _NO_LOG,
    "hydra.hydra_logging": _NO_LOG,
    "hydra.job.chdir": "paths belong to the folder where kvexp is typed; change to another folder before",
    "hydra.job.env_set": (
        "what measures has started before Hydra composes; write NAME=VALUE before the command"
    ),
    "hydra.job.env_copy": "kvexp's processes have the whole environment of the command; leave it out",
    "hydra.job.id": "the launcher numbers the curves",
    "hydra.job.num": "the launcher numbers the curves",
    "hydra.job.config_name": "--config-name names the primary config",
    "hydra.job.override_dirname": (
        "Hydra makes it of what is typed; hydra.job.config.override_dirname says how"
    ),
    "hydra.output_subdir": "the record of a curve is in .hydra/, where kvexp reads it again",
    "hydra.callbacks": "a curve is no job of Hydra's that would call them; the rows say what came of it",
    "hydra.runtime": _FILLED,
    "hydra.overrides": _FILLED,
    "hydra.help": "--help prints kvexp's options",
    "hydra.hydra_help": "--hydra-help prints Hydra's options",
}
"""Why each other key is refused; a group (hydra/callbacks) as the key of its name."""

_KEPT: dict[str, Any] = {
    "hydra.verbose": False,
    "hydra.job.chdir": False,
    "hydra.job.env_set": {},
    "hydra.job.env_copy": [],
    "hydra.output_subdir": None,
    "hydra.callbacks": {},
    "hydra.sweeper.max_batch_size": None,
}
"""The only value of a refused key that may be typed or stand in a YAML: what holds anyway."""

_NODES = tuple(f"hydra.{name}" for name in ("sweep", "job", "sweeper", "launcher", "callbacks"))
"""Nodes of Hydra's of which Hydra and kvexp read keys."""

_PLUGINS = ("hydra/launcher", "hydra/sweeper")


def check_typed(override: Override, dirs: Sequence[Path], names_sweeper: bool) -> None:
    """Check a typed override of Hydra's configuration.

    Args:
        override: What was typed.
        dirs: Have the launchers.
        names_sweeper: Whether a sweeper was typed, too: then its own keys may be typed.

    Raises:
        ConfigError: It is refused.
    """
    key, value = override.key_or_group, override.value()
    if key == "hydra" or (key in _NODES and not isinstance(value, dict)):
        raise ConfigError(f"{key} must have its keys; hydra.sweep.dir=FOLDER says where a sweep goes")
    if key == "hydra/sweeper" and not isinstance(value, str):
        raise ConfigError(f"{override.input_line!r} is refused: a sweep has one sweeper; choose one")
    if key == "hydra/launcher":
        _check_launcher(override, groups.describe_options(key, dirs))
    if key in _PLUGINS or (names_sweeper and _is_inside(key, _PARAMS)):
        return
    for leaf, inside in _list_leaves(key.replace("/", "."), value):
        _check_leaf(leaf, inside, str(override.input_line))
    if key == "hydra.searchpath" and isinstance(value, list):
        _check_folders(value)


def check_composed(hydra: DictConfig) -> None:
    """Check that no YAML has set what is refused on the command line.

    Raises:
        ConfigError: One has.
    """
    for key, kept in _KEPT.items():
        value = OmegaConf.select(hydra, key.removeprefix("hydra."), default=None)
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if plain is not None and not _is_same(plain, kept):
            raise ConfigError(f"{key} in a YAML is refused, since {_REFUSED[key]}")


def read_mode(overrides: Sequence[Override]) -> str | None:
    """Return the mode that was typed, RUN or MULTIRUN; None without one.

    Raises:
        ConfigError: It is something else.
    """
    for override in overrides:
        if override.key_or_group == MODE:
            value = override.value()
            if override.is_delete() or value not in ("RUN", "MULTIRUN"):
                raise ConfigError(f"{override.input_line!r} is no mode; {MODE} must be RUN or MULTIRUN")
            return str(value)
    return None


def _check_launcher(override: Override, names: Collection[str]) -> None:
    if override.is_sweep_override() or override.value() not in names:
        possible = ", ".join(names)
        raise ConfigError(
            f"{override.input_line!r} would run each curve by itself, and a sweep is measured as one; "
            f"choose {possible}"
        )


def _list_leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """List each key that has a value; a typed dictionary sets several."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inside in value.items():
        yield from _list_leaves(f"{key}.{name}", inside)


def _check_leaf(key: str, value: Any, text: str) -> None:
    refused = next((one for one in _REFUSED if _is_inside(key, one)), None)
    if refused:
        if key not in _KEPT or not _is_same(value, _KEPT[key]):
            raise ConfigError(f"{text!r} is refused, since {_REFUSED[refused]}")
    elif not any(_is_inside(key, one) for one in _WORKING):
        *others, last = _WORKING
        raise ConfigError(f"unknown key {key}; of Hydra's keys kvexp goes by {', '.join(others)} and {last}")


def _is_inside(key: str, node: str) -> bool:
    return key == node or key.startswith(f"{node}.")


def _is_same(value: Any, kept: Any) -> bool:
    return type(value) is type(kept) and bool(value == kept)


def _check_folders(searched: Sequence[Any]) -> None:
    """Refuse a folder that is not there; Hydra would only warn."""
    for path in searched:
        text = str(path)
        if "://" not in text or text.startswith("file://"):
            folder = Path(text.removeprefix("file://"))
            if "${" not in text and not folder.is_dir():
                raise ConfigError(f"hydra.searchpath names {folder}, which is no folder")
