"""argv in an order that Hydra takes, and what is refused before anything is composed."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from kvexp.cli import help
from kvexp.cli.schema import SWEEP
from kvexp.errors import ConfigError


@dataclass(frozen=True)
class CommandLine:
    """One command line, in order.

    Attributes:
        flags: What Hydra is told besides the overrides.
        overrides: The overrides, as typed.
        measures: False where a flag only prints: the configuration, Hydra's help, a completion.
    """

    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    measures: bool

    @property
    def argv(self) -> list[str]:
        """Flags first, overrides last."""
        return [*self.flags, *self.overrides]

    def types(self, key: str) -> bool:
        """Whether a value was typed for the key."""
        return any(text.lstrip("+").partition("=")[0] == key for text in self.overrides)


def ordered(argv: Sequence[str]) -> CommandLine:
    """The command line with its flags first.

    Hydra 1.3 refuses overrides on both sides of a flag (facebookresearch/hydra#3053, fixed in 1.4).
    `-m` is always there: one job is a sweep of one, and commas sweep whether it was typed or not.

    Raises:
        ConfigError: A flag is unknown or refused, or an override cannot be read or is refused.
    """
    typed = _parsed(argv)
    if typed.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun is refused, since it runs what a pickle file says")
    completes = typed.shell_completion or typed.hydra_help
    measures = not (completes or typed.cfg or typed.info)
    line = CommandLine(tuple(_flags(typed, measures)), tuple(typed.overrides), measures)
    if not completes:
        dirs = help.config_dirs(argv)
        _check_names(dirs)
        _check(line, dirs)
    return line


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the flags")

    # argparse would print its usage and exit; mypy has no word for replacing a method of one object.
    parser.error = refuse  # type: ignore[method-assign]
    # --info's value is optional: without this, `--info impl=torch` would take the override for it.
    arguments = [
        "--info=all" if argument in ("--info", "-i") and "=" in following else argument
        for argument, following in zip(argv, [*argv[1:], ""], strict=False)
    ]
    return parser.parse_intermixed_args(arguments)


def _flags(typed: argparse.Namespace, measures: bool) -> list[str]:
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
        # Hydra would look for a relative one beside its caller's file, not where it was typed.
        values["config-path"] = str(Path(typed.config_path).absolute())
    return switches + [f"--{name}={value}" for name, value in values.items() if value is not None]


def parsed(overrides: Sequence[str], dirs: Sequence[Path]) -> list[Override]:
    """The overrides as Hydra's grammar reads them.

    Args:
        overrides: As typed.
        dirs: The folders of options, named where one of a group cannot be read.

    Raises:
        ConfigError: One of them cannot be read.
    """
    parser = OverridesParser.create()
    found = []
    for text in overrides:
        try:
            found += parser.parse_overrides([text])
        except OverrideParseException as error:
            if "=" not in text:
                raise ConfigError(f"{text!r} is no override; write key=value") from error
            group = text.partition("=")[0]
            names = ", ".join(help.options(group, dirs)) if group in help.GROUPS else ""
            complaint = _complaint(text, error)
            quoted = f"""; quotes of its own let a value hold it: '{group}="..."'"""
            possible = (
                f"; {group} is one of {names}" if names else quoted if _NOT_ALLOWED in complaint else ""
            )
            raise ConfigError(f"cannot read the override {text!r}: {complaint}{possible}") from error
    return found


_NOT_ALLOWED = "is not allowed there"


def _complaint(text: str, error: OverrideParseException) -> str:
    """The grammar's complaint without its own names for classes and for the tokens it would have liked."""
    lexer = "LexerNoViableAltException: "
    lines = [line for line in str(error).split("\n") if not line.startswith(("See", "Error"))]
    if lines[0].startswith(lexer):
        # A line with a caret below what was typed.
        position = lines[-1].find("^") - len(lexer)
        at = repr(text[position]) if 0 <= position < len(text) else "one of its characters"
        return f"{at} {_NOT_ALLOWED}"
    complaint = re.sub(r" expecting \S.*|^\w+(Exception|Error): ", "", "; ".join(lines))
    return complaint.replace("mismatched input '<EOF>'", "it ends too early")


def _check_names(dirs: Sequence[Path]) -> None:
    """A row knows an option by its name alone, so one of the user's never takes the name of ours."""
    *theirs, ours = dirs
    for group in help.NAMED:
        for name in help.options(group, theirs):
            if name in help.options(group, [ours]):
                raise ConfigError(
                    f"{theirs[0] / group / name}.yaml takes the name of kvexp's own {group}={name}; "
                    "give it another one"
                )


def _check(line: CommandLine, dirs: Sequence[Path]) -> None:
    seen: dict[str, str] = {}
    for text, override in zip(line.overrides, parsed(line.overrides, dirs), strict=True):
        key = override.key_or_group
        if key in seen:
            raise ConfigError(f"{key} is typed twice, {seen[key]!r} and {text!r}; keep one of them")
        seen[key] = text
        if "_target_" in text:
            raise ConfigError(f"{text!r} is refused: only YAML files name classes (--config-dir)")
        if not key:
            raise ConfigError(f"{text!r} names no key; write key=value")
        if key == "hydra.mode":
            raise ConfigError("hydra.mode is refused, since kvexp always sweeps; --cfg job only prints")
        if key == "hydra.sweep.subdir":
            raise ConfigError(
                "hydra.sweep.subdir is refused, since every curve has a folder of its own; "
                "hydra.sweep.dir=FOLDER says where the sweep goes"
            )
        if key.startswith("hydra.sweeper.params"):
            raise ConfigError(f"{text!r} is refused; a sweep is typed as impl=cuda,triton")
        if key.startswith("workload.num_tokens."):
            raise ConfigError(f"{text!r} is refused; type the whole list, workload.num_tokens=[1,64]")
        if override.is_sweep_override():
            _check_sweep(text, override, line.measures)
        if key in help.GROUPS:
            _check_group(text, override, dirs)


def _check_sweep(text: str, override: Override, measures: bool) -> None:
    key = override.key_or_group
    if not override.is_discrete_sweep():
        raise ConfigError(f"{text!r} is an interval, which lists no values; write range(1,9) or 1,2,4")
    if not measures:
        raise ConfigError(f"{text!r} sweeps, but --cfg and --info show one curve; choose one value")
    if key == "experiment":
        raise ConfigError(
            f"{text!r} is refused: a sweep over experiment would drop each one's own sweep; "
            "run them one after another"
        )
    if key.partition(".")[0] == "tracking":
        raise ConfigError(f"{text!r} is refused: a sweep is tracked in one place; choose one value")
    if key in SWEEP:
        raise ConfigError(f"{text!r} is refused: {key} is one for a whole sweep; choose one value")


def _check_group(text: str, override: Override, dirs: Sequence[Path]) -> None:
    """A group names exactly one option in each curve; Hydra also takes lists, dicts and none at all."""
    group = override.key_or_group
    names = ", ".join(help.options(group, dirs))
    if group == "experiment" and (override.is_delete() or override.value() is None):
        return
    if override.is_delete() or override.is_add() or override.is_force_add():
        raise ConfigError(f"{text!r} is refused: {group} is one of {names}; write {group}=OPTION")
    for value in _values(override):
        if not isinstance(value, str) or not value or value.endswith(".yaml"):
            raise ConfigError(f"{text!r} names no option of {group}; choose one of {names}")


def _values(override: Override) -> list[Any]:
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_choice_sweep() and "glob(" not in (override.input_line or ""):
        return [str(value) for value in override.sweep_string_iterator()]
    return []
