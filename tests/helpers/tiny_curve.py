"""Make variants of the curve of workload=tiny on a CPU; Hydra composes it once a process."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch

from kvexp.case import Case
from kvexp.experiment import Choice, Experiment, Scalar, WorkloadSpec
from kvexp.impl import make
from kvexp.workload.cache_write import Memory
from tests.helpers import compose

_SIZES = {field.name for field in fields(WorkloadSpec)}


def curve(
    *, how: str = "", options: Mapping[str, Scalar] | None = None, rule: Mapping[str, Scalar] | None = None,
    **chosen: Any,
) -> Experiment:  # fmt: skip
    """Return the experiment; by default torch writes, and nothing is timed.

    Args:
        how: The class of the implementation, for example `wrong_impls.Idle`; by default torch's.
        options: Its options.
        rule: Options of the timer that differ from the usual ones.
        **chosen: Options of groups by name, and values of the workload. An op sets its own layout.
    """
    made = _composed()
    if "layout" not in chosen:
        chosen["layout"] = compose.layout_of(chosen.get("op", made.op.name))
    if "head_size" in chosen:
        chosen.setdefault("head_size_v", chosen["head_size"])
    if isinstance(chosen.get("num_tokens"), int):
        chosen["num_tokens"] = (chosen["num_tokens"],)
    sizes = {key: value for key, value in chosen.items() if key in _SIZES}
    groups: dict[str, Any] = {
        key: compose.choice(key, value) for key, value in chosen.items() if key not in _SIZES
    }
    made = replace(made, **groups, workload=replace(made.workload, **sizes))
    if how:
        made = replace(made, impl=Choice(how.rpartition(".")[2], f"tests.helpers.{how}", options or {}))
    if rule:
        made = replace(made, timer=replace(made.timer, options={**made.timer.options, **rule}))
    return made.resolve("cpu")


def case(**chosen: Any) -> Case:
    """Return the last point of the curve."""
    return list(curve(**chosen).cases())[-1]


def memory(*, cold_windows: int = 0, **chosen: Any) -> AbstractContextManager[Memory]:
    """Allocate the memory of the curve, with room for so many windows that share nothing."""
    made = curve(**chosen)
    largest = max(made.cases(), key=lambda case: case.num_tokens)
    cold = [(largest, cold_windows)] if cold_windows else []
    return make(made.op).allocate(largest, make(made.layout), source(made), cold)


def source(made: Experiment) -> torch.dtype:
    """Return the type of the experiment's keys and values."""
    dtype: torch.dtype = getattr(torch, str(made.dtype.options["torch_dtype"]))
    return dtype


@cache
def _composed() -> Experiment:
    return compose.experiment("workload=tiny", "impl=torch", "timer=none", "device=cpu")
