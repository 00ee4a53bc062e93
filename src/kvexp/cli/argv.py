"""Parse argv into flags and overrides for Hydra, and refuse what is wrong before anything is composed."""

import argparse
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import OverrideParseException

from kvexp.cli import groups, hydra_keys
from kvexp.cli.flags import list_flags, parse_flags
from kvexp.cli.schema import SWEEP
from kvexp.errors import ConfigError
from kvexp.host.addresses import mask_address, mask_secrets
from kvexp.results.overrides import is_tag

MOST_CURVES = 100_000
"""Most curves of a sweep: to compose them takes hours."""

ADDRESS = "tracking.uri"
"""The key of the store's address."""


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line.

    Attributes:
        flags: Hydra's flags.
        overrides: The overrides, as typed.
        measures: False where a flag only prints: the configuration, Hydra's help, a completion.
        runs_once: Whether one curve was asked for, by --run or by hydra.mode=RUN.
        address: The typed address of the store, if it has secrets. The overrides have them masked, and so has
            whatever is printed, written or composed.
    """

    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    measures: bool
    runs_once: bool = False
    address: str | None = field(default=None, repr=False)

    @property
    def argv(self) -> list[str]:
        """The flags, then the overrides; a tag has a + where no YAML has one of its name."""
        return [
            *self.flags,
            *(f"++{text.lstrip('+')}" if _adds_tag(text) else text for text in self.overrides),
        ]

    def sets(self, key: str) -> bool:
        """Return whether a value was typed for the key."""
        return any(text.lstrip("+").partition("=")[0] == key for text in self.overrides)


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Parse and check argv; put its flags first.

    Hydra 1.3 refuses overrides on both sides of a flag (facebookresearch/hydra#3053, fixed in 1.4).
    `-m` is always added: one job is a sweep of one, and commas sweep with and without it.

    Raises:
        ConfigError: A flag is unknown or refused, or an override cannot be read or is refused.
    """
    typed = parse_flags(argv)
    completes = typed.shell_completion or typed.hydra_help
    measures = not (completes or typed.cfg or typed.info)
    overrides = tuple(mask_override(text) for text in typed.overrides)
    line = CommandLine(tuple(list_flags(typed, measures)), overrides, measures, typed.run)
    if not completes:
        dirs = groups.config_dirs(argv)
        _check_names(dirs)
        _check_overrides(line, dirs)
        if measures:
            line = _take_mode(line, typed, dirs)
    pairs = zip(typed.overrides, overrides, strict=True)
    with_secrets = [pair for pair in pairs if pair[0] != pair[1] and not is_tag(pair[0])]
    return replace(line, address=_read_address(*with_secrets[0])) if with_secrets else line


def mask_override(text: str) -> str:
    """Mask the secrets of the store's address or of a tag, if that is what the typed word sets."""
    if is_tag(text):
        return mask_secrets(text)
    key, equals, value = text.partition("=")
    if key.lstrip("+") != ADDRESS:
        return text
    quote = value[:1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else ""
    return f"{key}{equals}{quote}{mask_address(value.removeprefix(quote).removesuffix(quote))}{quote}"


def _read_address(text: str, masked: str) -> str:
    """Return the value of that override; `masked` is for the error sentence."""
    with suppress(OverrideParseException):
        value = OverridesParser.create().parse_override(text).value()
        if isinstance(value, str):
            return value
    raise ConfigError(
        f"cannot read the override {masked!r}: a secret in it has a character that is not allowed there; "
        f"""quotes of its own let a value hold it: '{ADDRESS}="..."'"""
    )


def _take_mode(line: CommandLine, typed: argparse.Namespace, dirs: Sequence[Path]) -> CommandLine:
    """Take `hydra.mode` from the overrides: its RUN is --run, and its MULTIRUN is what holds anyway.

    Raises:
        ConfigError: It is another mode, or a flag asks for the other one.
    """
    texts = [text for text in line.overrides if text.partition("=")[0].lstrip("+~") == hydra_keys.MODE]
    mode = hydra_keys.read_mode(parse_overrides(texts, dirs))
    for flag, other in (("run", "MULTIRUN"), ("multirun", "RUN")):
        if getattr(typed, flag) and mode == other:
            raise ConfigError(f"--{flag} and {hydra_keys.MODE}={other} ask for different things; type one")
    rest = tuple(text for text in line.overrides if text not in texts)
    return replace(line, overrides=rest, runs_once=line.runs_once or mode == "RUN")


def parse_overrides(overrides: Sequence[str], dirs: Sequence[Path]) -> list[Override]:
    """Parse the typed overrides with Hydra's grammar; the error sentence names the options in `dirs`.

    Raises:
        ConfigError: One of them cannot be read.
    """
    parser = OverridesParser.create()
    found = []
    for text in overrides:
        try:
            found += parser.parse_overrides([text])
        except (ValueError, RecursionError) as error:  # Hydra lets these pass
            raise ConfigError(
                f"cannot read the override {text[:80]!r}: a number in it has too many digits, or brackets in "
                "it are nested too deeply"
            ) from error
        except OverrideParseException as error:
            if "=" not in text:
                raise ConfigError(f"{text!r} is no override; write key=value") from error
            group = text.partition("=")[0]
            names = ", ".join(groups.describe_options(group, dirs)) if group in groups.GROUPS else ""
            complaint = _find_unpaired(text) or _shorten(text, error)
            quoted = f"""; quotes of its own let a value hold it: '{group}="..."'"""
            possible = (
                f"; {group} is one of {names}" if names else quoted if _NOT_ALLOWED in complaint else ""
            )
            raise ConfigError(f"cannot read the override {text!r}: {complaint}{possible}") from error
    return found


_PARTNERS = {"(": ")", "[": "]", "{": "}"}
_NOT_ALLOWED = "is not allowed there"


def _find_unpaired(text: str) -> str:
    """Say which bracket or quote of a value has no partner; nothing where each has one."""
    waiting: list[str] = []
    quote, is_escaped = "", False
    for letter in text.partition("=")[2]:
        if quote:
            is_end = letter == quote and not is_escaped
            is_escaped = letter == "\\" and not is_escaped
            quote = "" if is_end else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _PARTNERS:
            waiting.append(letter)
        elif letter in _PARTNERS.values() and (not waiting or _PARTNERS[waiting.pop()] != letter):
            return f"the {letter} has no partner before it"
    if quote:
        return f"the quote {quote} is not closed"
    return f"the {waiting[-1]} is not closed: a {_PARTNERS[waiting[-1]]} is missing" if waiting else ""


def _shorten(text: str, error: OverrideParseException) -> str:
    """Shorten the grammar's complaint: leave out class names and the tokens that it expected."""
    lexer = "LexerNoViableAltException: "
    lines = [line for line in str(error).split("\n") if not line.startswith(("See", "Error"))]
    if lines[0].startswith(lexer):
        # The last line has a caret below the wrong character.
        position = lines[-1].find("^") - len(lexer)
        at = repr(text[position]) if 0 <= position < len(text) else "one of its characters"
        return f"{at} {_NOT_ALLOWED}"
    complaint = re.sub(r" expecting \S.*|^\w+(Exception|Error): ", "", "; ".join(lines))
    return complaint.replace("mismatched input '<EOF>'", "it ends too early")


def _check_names(dirs: Sequence[Path]) -> None:
    """Refuse an option of the user's with the name of ours: a row holds the name alone."""
    *theirs, ours = dirs
    for group in groups.GROUPS_WITHOUT_KEYS:
        for name in groups.list_options(group, theirs):
            if own := groups.find_option(group, name, [ours]):
                raise ConfigError(
                    f"{theirs[0] / group / name}.yaml takes the name of kvexp's own {group}={own}; "
                    "give it another one"
                )


def _check_overrides(line: CommandLine, dirs: Sequence[Path]) -> None:
    seen: dict[str, str] = {}
    for text, override in zip(line.overrides, parse_overrides(line.overrides, dirs), strict=True):
        key = override.key_or_group
        if key in seen:
            raise ConfigError(f"{key} is typed twice, {seen[key]!r} and {text!r}; keep one of them")
        seen[key] = text
        if "_target_" in text:
            raise ConfigError(f"{text!r} is refused: only YAML files name classes (--config-dir)")
        if not key:
            raise ConfigError(f"{text!r} names no key; write key=value")
        if key == "hydra" or override.is_hydra_override():
            hydra_keys.check_typed(override, dirs, line.sets("hydra/sweeper"))
        if key.partition(".")[0] == "choices":
            raise ConfigError(f"{text!r} is refused: choices says what was chosen; write GROUP=OPTION")
        if key.startswith("workload.num_tokens."):
            raise ConfigError(f"{text!r} is refused; type the whole list, workload.num_tokens=[1,64]")
        if override.is_sweep_override():
            _check_sweep(text, override, line)
        if key in groups.GROUPS:
            _check_group(text, override, dirs)


def _check_sweep(text: str, override: Override, line: CommandLine) -> None:
    key = override.key_or_group
    if not override.is_discrete_sweep() and not line.sets("hydra/sweeper"):
        raise ConfigError(
            f"{text!r} is refused: an interval lists no values; write range(1,9) or 1,2,4, "
            "or choose a sweeper that optimises (hydra/sweeper=optuna)"
        )
    if isinstance(override.value(), RangeSweep):
        count_values(override)
    if not line.measures:
        raise ConfigError(f"{text!r} sweeps, but --cfg and --info show one curve; choose one value")
    if key == "experiment":
        raise ConfigError(
            f"{text!r} is refused: a sweep over experiment would drop each one's own sweep; "
            "run them one after another"
        )
    if key.partition(".")[0] == "tracking":
        raise ConfigError(f"{text!r} is refused: a sweep is tracked in one place; choose one value")
    if key in SWEEP:
        raise ConfigError(f"{text!r} is refused: {key} has one value for a whole sweep; choose one")


def count_values(override: Override) -> int:
    """Count the values that an override sweeps over.

    Raises:
        ConfigError: They cannot be listed, or are more than MOST_CURVES.
    """
    value, text = override.value(), override.input_line
    try:
        # `sweep_iterator` makes a list of a range that is shuffled.
        values = value.range() if isinstance(value, RangeSweep) else override.sweep_iterator()
        count = sum(1 for _ in islice(values, MOST_CURVES + 1))
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"{text!r} lists no values; write numbers, and a step that is not 0") from error
    if count > MOST_CURVES:
        raise ConfigError(f"{text!r} lists more than {MOST_CURVES:,} values; choose fewer")
    return count


def _check_group(text: str, override: Override, dirs: Sequence[Path]) -> None:
    """Check that a group names one option per curve; Hydra also takes lists, dicts and nothing."""
    group = override.key_or_group
    names = ", ".join(groups.describe_options(group, dirs))
    if group == "experiment" and override.is_delete():
        return
    if override.is_delete() or override.is_add() or override.is_force_add():
        raise ConfigError(f"{text!r} is refused: {group} is one of {names}; write {group}=OPTION")
    for value in _list_values(override):
        if not isinstance(value, str) or not value or value.endswith(".yaml"):
            raise ConfigError(f"{text!r} names no option of {group}; choose one of {names}")


def _adds_tag(text: str) -> bool:
    return is_tag(text) and not text.startswith("~")


def _list_values(override: Override) -> list[Any]:
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_choice_sweep() and "glob(" not in (override.input_line or ""):
        return [str(value) for value in override.sweep_string_iterator()]
    return []
