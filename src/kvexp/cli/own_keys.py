"""Set the own keys of options that name code (`impl.sort`), of which each option may have others.

Hydra composes a sweep's base without what is swept, so there an own key would meet the default's option. It
is withheld from the base, and set in each curve whose option has it. The option's YAML says its type.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from kvexp.cli.argv import CommandLine
from kvexp.cli.groups import CODE
from kvexp.cli.schema import describe_missing_key, find_type, read
from kvexp.column import ANY
from kvexp.errors import ConfigError
from kvexp.results.overrides import get_key

Compose = Callable[[int, Sequence[str]], DictConfig]
"""Composes the curve of a number and of overrides."""


@dataclass(frozen=True)
class _Job:
    """A curve to compose.

    Attributes:
        rest: Its overrides without those of own keys.
        own: Its overrides of own keys.
        base: What its chosen options compose: each as its YAML has it.
    """

    rest: tuple[str, ...]
    own: tuple[Override, ...]
    base: DictConfig

    @property
    def taken(self) -> tuple[Override, ...]:
        """The own keys that its options have, or that are added to them (`+`)."""
        return tuple(one for one in self.own if one.is_add() or one.is_force_add() or self._has(one))

    def _has(self, override: Override) -> bool:
        group, key = _split(override)
        return key in _list_keys(self.base[group])


def withhold(line: CommandLine) -> CommandLine:
    """Return the command line without own keys."""
    return replace(line, overrides=tuple(text for text in line.overrides if not _is_own(text)))


def list_own(line: CommandLine) -> list[str]:
    """List the overrides of own keys."""
    return [text for text in line.overrides if _is_own(text)]


def check_space(overrides: Sequence[Override], compose: Compose) -> None:
    """Check that each own key among the overrides is known to one of the options among them.

    Raises:
        ConfigError: No option has it.
    """
    own = [override for override in overrides if _is_own(str(override.input_line))]
    for group in dict.fromkeys(_split(override)[0] for override in own):
        texts = [str(override.input_line) for override in own if _split(override)[0] == group]
        chosen = [override for override in overrides if override.key_or_group == group]
        options = [[f"{group}={name}"] for override in chosen for name in _list_values(override)]
        _check_known(_parse([[*option, *texts] for option in options or [[]]], 0, compose))


def _list_values(override: Override) -> list[str]:
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(override.value())]


def compose_jobs(
    jobs: Sequence[Sequence[str]], first: int, compose: Compose, is_product: bool = True
) -> Iterator[DictConfig]:
    """Compose each job, numbered from `first`, without the own keys that its option lacks and another's has.

    Of a product a job that so becomes an earlier one is left out. Else a sweeper waits for an answer to each
    job, and `check_space` has checked the keys.

    Raises:
        ConfigError: No option has a key, or a value has another type than in the option's YAML.
    """
    if not any(map(_is_own, chain.from_iterable(jobs))):
        yield from (compose(number, job) for number, job in enumerate(jobs, first))
        return
    parsed = _parse(jobs, first, compose)
    if is_product:
        _check_known(parsed)
    numbers = count(first)
    seen = set()
    for job in parsed:
        overrides = (*job.rest, *(str(one.input_line) for one in job.taken))
        if is_product and len(job.taken) < len(job.own) and overrides in seen:
            continue
        seen.add(overrides)
        config = compose(next(numbers), overrides)
        _read_values(config, job.base)
        yield config


def _is_own(text: str) -> bool:
    group, dot, _ = get_key(text).partition(".")
    return bool(dot) and group in CODE


def _split(override: Override) -> tuple[str, str]:
    """Return the group and the option's key of `impl.sort=true`."""
    group, _, inside = override.key_or_group.partition(".")
    return group, inside.partition(".")[0]


def _parse(jobs: Sequence[Sequence[str]], number: int, compose: Compose) -> list[_Job]:
    """Parse the own keys of each job; compose its options once for all jobs that have them."""
    parser = OverridesParser.create()
    bases: dict[tuple[str, ...], DictConfig] = {}
    parsed = []
    for texts in jobs:
        rest = tuple(text for text in texts if not _is_own(text))
        choices = tuple(text for text in rest if "." not in get_key(text))
        if choices not in bases:
            bases[choices] = compose(number, choices)
        own = parser.parse_overrides([text for text in texts if _is_own(text)])
        parsed.append(_Job(rest, tuple(own), bases[choices]))
    return parsed


def _check_known(jobs: Sequence[_Job]) -> None:
    """Refuse a key that no option has; name each option that was asked."""
    taken = {one.key_or_group for job in jobs for one in job.taken}
    for own in (one for job in jobs for one in job.own if one.key_or_group not in taken):
        group, key = _split(own)
        owners = {
            f"{group}={job.base.hydra.runtime.choices[group]}": _list_keys(job.base[group]) for job in jobs
        }
        raise ConfigError(describe_missing_key(group, key, owners))


def _list_keys(option: DictConfig) -> list[str]:
    return [str(key) for key in option if key != "_target_"]


def _read_values(config: DictConfig, base: DictConfig) -> None:
    """Check the value of each key that an option's YAML has; a whole number is a float where that has one."""
    for group in CODE:
        values = cast(dict[str, Any], OmegaConf.to_container(base[group], resolve=False))
        for key in _list_keys(base[group]):
            column = find_type(values[key])
            if column is not ANY and key in config[group]:
                name = f"{group}.{key}"
                OmegaConf.update(config, name, read(name, column, OmegaConf.select(config, name)))
