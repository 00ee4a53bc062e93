"""Register the ops as `torch.ops.kvexp`, with the caches that they write, for torch.compile."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

_library = Library("kvexp", "DEF")

_LAST = "str kv_cache_dtype, Tensor? k_scale, Tensor? v_scale, str impl, bool check_slots"
TWO_CACHES = (
    f"(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slot_mapping, {_LAST})"
)
ONE_CACHE = f"(Tensor key, Tensor value, Tensor(a!) kv_cache, Tensor slot_mapping, {_LAST})"


def _fake(*_arguments: Tensor | str | bool | None) -> None:
    """Stand in for an op while torch traces: it writes existing caches and returns nothing."""


def register(function: Callable[..., None], schema: str) -> None:
    """Register the library's function as an operator of torch under its name."""
    name = function.__name__

    def call(*arguments: Any) -> None:
        *others, impl, check_slots = arguments
        function(*others, impl=impl, check_slots=check_slots)

    _library.define(f"{name}{schema} -> ()")
    for device in ("CPU", "CUDA"):
        _library.impl(name, call, device)
    torch.library.register_fake(f"kvexp::{name}", _fake, lib=_library)
