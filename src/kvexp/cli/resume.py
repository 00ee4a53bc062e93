"""Turn `resume=` into a command line that Hydra composes into the folder of an earlier sweep."""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kvexp.cli import groups
from kvexp.cli.argv import CommandLine, parse_command_line, parse_overrides
from kvexp.errors import ConfigError
from kvexp.host import terminal
from kvexp.host.addresses import mask_secrets
from kvexp.results import sweep_dir as sweep_folder
from kvexp.results.overrides import (
    get_key,
    is_about_tracking,
    is_label,
    is_place,
    is_plain,
    is_reference,
    quote_value,
)

ROOT = "multirun"
_KEY = "resume"
_SWEEP_DIR = "hydra.sweep.dir"
_HARMLESS = ("hydra.launcher.devices", "hydra.launcher.workers")
"""Hydra's keys that a record may hold: on how many of this host's devices to measure."""

OmegaConf.register_new_resolver("kvexp.plus", lambda number, more: int(number) + int(more), replace=True)


def read_resume(line: CommandLine) -> tuple[CommandLine, Path | None]:
    """Return the command line to compose, without `resume`, and the folder of the sweep that it continues.

    `resume` alone, or beside `tracking` alone, repeats that sweep's command line; beside other overrides it
    only names the folder. Where there is nothing to resume, what is typed beside it is a new sweep, as a line
    on stderr says.

    Raises:
        ConfigError: What `resume` names is no sweep, or its command line cannot be repeated; or there is no
            sweep and nothing else was typed.
    """
    value = _read_value(line)
    rest = tuple(text for text in line.overrides if get_key(text) != _KEY)
    if not line.measures or value is None:
        return line, None
    line = replace(line, overrides=rest)
    if value is False:
        return line, None
    is_alone = all(map(is_about_tracking, rest))
    folder = _find_folder(value)
    if folder is None:
        nothing = f"there is no sweep below {ROOT}/ to resume"
        if is_alone:
            raise ConfigError(f"{nothing}; type what to measure, or resume=FOLDER")
        terminal.say(f"kvexp: {nothing}, so this is a new one")
        return line, None
    if line.sets(_SWEEP_DIR):
        raise ConfigError(f"{_SWEEP_DIR} is refused beside resume={folder}, which says where the sweep goes")
    return (_repeat_command(line, folder) if is_alone else line), folder


def place_curves(line: CommandLine, folder: Path | None) -> CommandLine:
    """Send the curves to that folder, if any, numbered after those that it holds."""
    if folder is None:
        return line
    number = sweep_folder.next_number(folder)
    where = (
        f"{_SWEEP_DIR}={quote_value(str(folder))}",
        f"hydra.sweep.subdir='${{kvexp.plus:{number},${{hydra.job.num}}}}'",
    )
    return replace(line, overrides=(*line.overrides, *where))


def write_resume(line: CommandLine, home: Path, kept: Sequence[str] | None) -> str:
    """Return the command that continues the sweep in the folder, which has the record of its first start.

    `kept` are the typed overrides as a record holds them, if it can.
    """
    flags = [flag for flag in line.flags if flag != "--multirun"]
    rest = [text for text in line.overrides if get_key(text) != _SWEEP_DIR]
    with suppress(ConfigError):  # else the whole command must be typed again
        recorded, _ = sweep_folder.read_command(home)
        if kept is not None and _select_kept(recorded) == _select_kept(kept) and all(map(is_plain, rest)):
            rest = [text for text in rest if is_place(text)]
    where = f"{_KEY}={quote_value(os.path.relpath(home))}"
    return mask_secrets(shlex.join(["python", "-m", "kvexp", *flags, where, *rest]))


def _select_kept(overrides: Sequence[str]) -> list[str]:
    return [text for text in overrides if get_key(text) not in (_KEY, _SWEEP_DIR) and not is_place(text)]


def _read_value(line: CommandLine) -> Any:
    """Return the value of `resume`; None where it was not typed."""
    texts = [text for text in line.overrides if get_key(text) == _KEY]
    if not texts:
        return None
    (override,) = parse_overrides(texts, groups.config_dirs(line.flags))
    value = override.value()
    return False if value is None or override.is_delete() else value


def _find_folder(value: Any) -> Path | None:
    """Return the absolute folder of the sweep that `resume` names; None where there is no last one.

    Raises:
        ConfigError: It names no sweep.
    """
    if value is True:
        return sweep_folder.find_last(Path.cwd() / ROOT)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"resume must be true, false or a sweep's folder, not {value!r}")
    folder = Path.cwd() / Path(value).expanduser()
    if "${" in os.path.relpath(folder):
        raise ConfigError(f"resume={value} has a ${{ in its path, which Hydra would read as a reference")
    if not sweep_folder.is_sweep(folder):
        raise ConfigError(f"resume={value} is not the folder of a sweep; an example is {ROOT}/<date>/<time>")
    return Path(os.path.normpath(folder))


def _repeat_command(line: CommandLine, folder: Path) -> CommandLine:
    """Combine what is typed now, flags and where to track, with the sweep's overrides.

    A file in the folder must not name code to load, nor what is to be sent where.

    Raises:
        ConfigError: The sweep has a flag that is not typed now, an override of Hydra's, or no override.
    """
    overrides, flags = sweep_folder.read_command(folder)
    for flag in flags:
        if flag not in line.flags:
            raise ConfigError(
                f"the sweep in {folder} was typed with {flag}; type that beside resume={folder}"
            )
    rest = [text for text in overrides if get_key(text) not in (_KEY, _SWEEP_DIR)]
    for text in rest:
        if text.startswith("-"):
            raise ConfigError(f"{text!r} in {folder / sweep_folder.COMMAND} is no override")
        if get_key(text).startswith("hydra") and get_key(text) not in _HARMLESS:
            raise ConfigError(f"the sweep in {folder} was typed with {text!r}; type the whole command again")
        if is_reference(text):
            raise ConfigError(
                f"{text!r} in {folder / sweep_folder.COMMAND} is refused: it refers to something outside of "
                "the folder; type the whole command again"
            )
    places = [text for text in line.overrides if not is_label(text)]
    if not places and (any(map(is_place, rest)) or sweep_folder.names_store(folder)):
        terminal.say(
            f"kvexp: the store that the sweep in {folder} was typed with is not kept; "
            "type tracking.uri=ADDRESS beside resume= to track there"
        )
    typed = {get_key(text) for text in line.overrides} | ({"tracking"} if places else set())
    kept = [text for text in rest if not is_place(text) and get_key(text) not in typed]
    # The typed overrides have their secrets masked.
    repeated = parse_command_line([*line.flags, *kept, *line.overrides])
    return replace(repeated, address=line.address, runs_once=line.runs_once)
