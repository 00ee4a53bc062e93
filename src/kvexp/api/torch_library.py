"""The ops in torch's registry, `torch.ops.kvexp`: what torch.compile sees, and the caches they write."""

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


def _writes_nothing_new(*_arguments: Tensor | str | bool | None) -> None:
    """The fake: the caches have been there before, and nothing is returned."""


def register(function: Callable[..., None], schema: str) -> None:
    """The library's function is an operator of torch, by its name."""
    name = function.__name__

    def called(*arguments: Any) -> None:
        *others, impl, check_slots = arguments
        function(*others, impl=impl, check_slots=check_slots)

    _library.define(f"{name}{schema} -> ()")
    for device in ("CPU", "CUDA"):
        _library.impl(name, called, device)
    torch.library.register_fake(f"kvexp::{name}", _writes_nothing_new, lib=_library)
