"""Read flags with Hydra's own parser, and refuse those that would do nothing."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from kvexp.errors import ConfigError

_COMMANDS = ("run", "multirun", "cfg", "info", "shell_completion")
"""Flags of which Hydra takes one at a time."""


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse flags and overrides, in any order.

    Raises:
        ConfigError: A flag is unknown or refused.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the flags")

    # argparse would print its usage and exit.
    parser.error = refuse  # type: ignore[method-assign]
    # --info's value is optional: without this, `--info impl=torch` would take the override for it.
    arguments = [
        "--info=all" if argument in ("--info", "-i") and "=" in following else argument
        for argument, following in zip(argv, [*argv[1:], ""], strict=False)
    ]
    typed = parser.parse_intermixed_args(arguments)
    _check_flags(typed)
    return typed


def list_flags(typed: argparse.Namespace, measures: bool) -> list[str]:
    """List the flags for Hydra; a sweep always has --multirun."""
    if measures:
        switches = ["--multirun"]
    else:
        prints = ("hydra_help", "shell_completion")
        switches = ["--" + name.replace("_", "-") for name in prints if getattr(typed, name)]
    if typed.resolve:
        switches.append("--resolve")
    names = ("cfg", "info", "package", "config_path", "config_name", "config_dir")
    values = {name.replace("_", "-"): getattr(typed, name) for name in names}
    if typed.config_path and "://" not in typed.config_path:
        # Hydra would resolve a relative path from its caller's file, not from the current folder.
        values["config-path"] = str(Path(typed.config_path).absolute())
    return switches + [f"--{name}={value}" for name, value in values.items() if value is not None]


def _check_flags(typed: argparse.Namespace) -> None:
    if typed.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun is refused, since it runs what a pickle file says")
    commands = ["--" + name.replace("_", "-") for name in _COMMANDS if getattr(typed, name)]
    if len(commands) > 1:
        raise ConfigError(f"{' and '.join(commands)} ask for different things; type one of them")
    if typed.package and not typed.cfg:
        raise ConfigError(f"--package={typed.package} says what --cfg prints; type --cfg job beside it")
    if typed.shell_completion:
        _check_completion(typed.overrides)


def _check_completion(words: Sequence[str]) -> None:
    word = words[0].partition("=")[0] if words else ""
    if word == "query" and "COMP_LINE" not in os.environ:
        raise ConfigError(
            "-sc query is for shells, which set COMP_LINE; -sc install=bash prints how one asks"
        )
    if word == "install" and sys.argv[0].endswith(".py"):
        raise ConfigError(
            "shells complete the command kvexp, not python -m kvexp; type kvexp -sc install=bash"
        )
