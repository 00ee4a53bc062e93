"""Turn `resume=` into a command line that Hydra composes into the folder of an earlier sweep."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kvexp.addresses import MASK
from kvexp.cli import help
from kvexp.cli.argv import CommandLine, parse_command_line, parse_overrides
from kvexp.errors import ConfigError
from kvexp.results import sweep_dir as sweep_folder

ROOT = "multirun"
_KEY = "resume"
_SWEEP_DIR = "hydra.sweep.dir"

OmegaConf.register_new_resolver("kvexp.plus", lambda number, more: int(number) + int(more), replace=True)


def read_resume(line: CommandLine) -> tuple[CommandLine, Path | None]:
    """Return the command line to compose, without `resume`, and the folder of the sweep that it continues.

    `resume` alone repeats that sweep's command line; beside other overrides it only names the folder. Where
    there is nothing to resume, a line on stderr says so and the sweep is a new one.

    Raises:
        ConfigError: What `resume` names is no sweep, or its command line cannot be repeated.
    """
    value = _read_value(line)
    rest = tuple(text for text in line.overrides if not _sets(text, _KEY))
    if not line.measures or value is None:
        return line, None
    line = replace(line, overrides=rest)
    if value is False:
        return line, None
    folder = _find_folder(value)
    if folder is None:
        sys.stderr.write(f"kvexp: there is no sweep below {ROOT}/ to resume, so this is a new one\n")
        return line, None
    if line.sets(_SWEEP_DIR):
        raise ConfigError(f"{_SWEEP_DIR} is refused beside resume={folder}, which says where the sweep goes")
    return (line if rest else _repeat_command(line, folder)), folder


def place_curves(line: CommandLine, folder: Path | None) -> CommandLine:
    """Send the curves to that folder, if any, numbered after those that it holds."""
    if folder is None:
        return line
    number = sweep_folder.next_number(folder)
    quoted = os.path.relpath(folder).replace("\\", "\\\\").replace("'", "\\'")
    where = (
        f"{_SWEEP_DIR}='{quoted}'",
        f"hydra.sweep.subdir='${{kvexp.plus:{number},${{hydra.job.num}}}}'",
        "hydra.callbacks.sweep_start.resumes=true",
    )
    return replace(line, overrides=(*line.overrides, *where))


def _read_value(line: CommandLine) -> Any:
    """Return the value of `resume`; None where it was not typed."""
    texts = [text for text in line.overrides if _sets(text, _KEY)]
    if not texts:
        return None
    (override,) = parse_overrides(texts, help.config_dirs(line.flags))
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
    """Combine the flags typed now with the sweep's overrides; flags in a file must not name code to load.

    Raises:
        ConfigError: The sweep has a flag that is not typed now, an override of Hydra's, or no override.
    """
    overrides, flags = sweep_folder.read_command(folder)
    for flag in flags:
        if flag not in line.flags:
            raise ConfigError(
                f"the sweep in {folder} was typed with {flag}; type that beside resume={folder}"
            )
    rest = [text for text in overrides if not _sets(text, _KEY) and not _sets(text, _SWEEP_DIR)]
    for text in rest:
        if text.startswith("-"):
            raise ConfigError(f"{text!r} in {folder / sweep_folder.COMMAND} is no override")
        if MASK in text:
            raise ConfigError(
                f"the sweep in {folder} was typed with an address whose secrets are not kept; "
                f"type the whole command again, with resume={folder}"
            )
        if text.lstrip("+~").startswith("hydra"):
            raise ConfigError(f"the sweep in {folder} was typed with {text!r}; type the whole command again")
    return parse_command_line([*line.flags, *rest])


def _sets(text: str, key: str) -> bool:
    return text.lstrip("+~").partition("=")[0] == key
