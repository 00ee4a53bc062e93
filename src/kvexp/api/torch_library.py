"""Register the ops as `torch.ops.kvexp`, with the tensors that they write, for torch.compile."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from kvexp.op import Op

TYPES: dict[Any, str] = {
    **{"Tensor": "Tensor", "Tensor | None": "Tensor?"},
    **{str: "str", str | None: "str?", int: "int", bool: "bool"},
}
"""Words of torch's schemas for the annotations of an op's function."""

_library = Library("kvexp", "DEF")


def _fake(*_arguments: Tensor | str | int | None) -> None:
    """Stand in for an op while torch traces: it writes existing caches and returns nothing."""


def make_schema(op: Op) -> str:
    """Return torch's schema of the op's function, whose written tensors are marked."""
    marks = {name: f"Tensor({mark}!)" for name, mark in zip(op.writes, "abcdefgh", strict=False)}
    parameters = inspect.signature(op.function).parameters.values()
    words = (f"{marks.get(each.name, TYPES[each.annotation])} {each.name}" for each in parameters)
    return f"{op.name}({', '.join(words)}) -> ()"


def register(op: Op, function: Callable[..., None]) -> None:
    """Register the library's function of the op as an operator of torch."""

    def call(*arguments: Any) -> None:
        *others, impl, check_slots = arguments
        function(*others, impl=impl, check_slots=check_slots)

    _library.define(make_schema(op))
    for device in ("CPU", "CUDA"):
        _library.impl(op.name, call, device)
    torch.library.register_fake(f"kvexp::{op.name}", _fake, lib=_library)
