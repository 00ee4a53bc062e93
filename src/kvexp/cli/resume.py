"""`resume=` becomes a command line that Hydra composes into the folder of an earlier sweep."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kvexp.cli import help
from kvexp.cli.argv import CommandLine, ordered, parsed
from kvexp.errors import ConfigError
from kvexp.results import sweep_dir as sweep_folder

ROOT = "multirun"
_KEY = "resume"
_WHERE = "hydra.sweep.dir"

OmegaConf.register_new_resolver("kvexp.plus", lambda number, more: int(number) + int(more), replace=True)


def begun(line: CommandLine) -> tuple[CommandLine, Path | None]:
    """The command line to compose, without `resume`, and the folder of the sweep that it continues.

    `resume` alone repeats what that sweep was typed with; beside other overrides it only says where. Where
    there is nothing to resume the sweep is a fresh one, with a word on stderr.

    Raises:
        ConfigError: What `resume` names is no sweep, or its command line cannot be repeated.
    """
    value = _value(line)
    rest = tuple(text for text in line.overrides if not _is(text, _KEY))
    if not line.measures or value is None:
        return line, None
    line = replace(line, overrides=rest)
    if value is False:
        return line, None
    folder = _folder(value)
    if folder is None:
        sys.stderr.write(f"kvexp: there is no sweep below {ROOT}/ to resume, so this is a fresh one\n")
        return line, None
    if line.types(_WHERE):
        raise ConfigError(f"{_WHERE} is refused beside resume={folder}, which says where the sweep goes")
    return (line if rest else _repeated(line, folder)), folder


def placed(line: CommandLine, folder: Path | None) -> CommandLine:
    """The command line whose curves go to that folder, numbered after those that it holds."""
    if folder is None:
        return line
    number = sweep_folder.next_number(folder)
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    where = (
        f"{_WHERE}='{quoted}'",
        f"hydra.sweep.subdir='${{kvexp.plus:{number},${{hydra.job.num}}}}'",
        "hydra.callbacks.sweep_start.resumes=true",
    )
    return replace(line, overrides=(*line.overrides, *where))


def _value(line: CommandLine) -> Any:
    """What `resume` was typed as; None where it was not."""
    texts = [text for text in line.overrides if _is(text, _KEY)]
    if not texts:
        return None
    (override,) = parsed(texts, help.config_dirs(line.flags))
    value = override.value()
    return False if value is None or override.is_delete() else value


def _folder(value: Any) -> Path | None:
    """The absolute folder of the sweep that `resume` names; None where there is no last one.

    Raises:
        ConfigError: It names no sweep.
    """
    if value is True:
        return sweep_folder.find_last(Path.cwd() / ROOT)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"resume must be true, false or a sweep's folder, not {value!r}")
    folder = Path.cwd() / Path(value).expanduser()
    if "${" in str(folder):
        raise ConfigError(f"resume={value} has a ${{ in its path, which Hydra would take for a reference")
    if not sweep_folder.is_sweep(folder):
        raise ConfigError(f"resume={value} is not the folder of a sweep; an example is {ROOT}/<date>/<time>")
    return Path(os.path.normpath(folder))


def _repeated(line: CommandLine, folder: Path) -> CommandLine:
    """The sweep's own overrides behind the flags typed now; no result says where code is found.

    Raises:
        ConfigError: It was typed with something that has to be typed again, or that is no override.
    """
    overrides, flags = sweep_folder.read_command(folder)
    for flag in flags:
        if flag not in line.flags:
            raise ConfigError(
                f"the sweep in {folder} was typed with {flag}; type that beside resume={folder}"
            )
    kept = [text for text in overrides if not _is(text, _KEY) and not _is(text, _WHERE)]
    for text in kept:
        if text.startswith("-"):
            raise ConfigError(f"{text!r} in {folder / sweep_folder.COMMAND} is no override")
        if text.lstrip("+~").startswith("hydra"):
            raise ConfigError(f"the sweep in {folder} was typed with {text!r}; type the whole command again")
    return ordered([*line.flags, *kept])


def _is(text: str, key: str) -> bool:
    return text.lstrip("+~").partition("=")[0] == key
