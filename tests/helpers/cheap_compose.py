"""Composing for less: keys set without Hydra, and fewer jobs than the product of what a line sweeps."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import pytest
from hydra._internal.core_plugins import basic_sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from kvexp.experiment import Experiment
from tests.helpers import compose


def set_keys(*words: str) -> Experiment:
    """Compose the options once for all, and set the keys (`workload.seed=1`) as Hydra does."""
    config, choices = _compose(*(word for word in words if "." not in word.partition("=")[0]))
    config = deepcopy(config)
    keys = [word for word in words if "." in word.partition("=")[0]]
    for override in OverridesParser.create().parse_overrides(keys):
        OmegaConf.update(config, override.key_or_group, override.value())
    return compose.build(config, choices, words)


_compose = cache(compose.compose_config)


def choose_jobs(monkeypatch: pytest.MonkeyPatch, list_jobs: Callable[..., Iterator[list[str]]]) -> None:
    """Let Hydra's sweeper compose these jobs instead of the product."""
    Plugins.instance()  # it runs the sweeper's file anew, once in a process
    monkeypatch.setattr(basic_sweeper, "itertools", SimpleNamespace(product=list_jobs))


def list_abreast(*axes: Sequence[str]) -> Iterator[list[str]]:
    """List the first value of each axis, then the second; a short axis stays at its last."""
    for number in range(max(map(len, axes))):
        yield [axis[min(number, len(axis) - 1)] for axis in axes]


def list_one_by_one(*axes: Sequence[str]) -> Iterator[list[str]]:
    """List the first value of each axis, then each further value beside the first of all others.

    So two values of one axis that mean the same curve are still found.
    """
    first = [axis[0] for axis in axes]
    yield first
    for number, axis in enumerate(axes):
        for value in axis[1:]:
            yield [*first[:number], value, *first[number + 1 :]]
