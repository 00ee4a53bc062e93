"""Eager calls: known to be valid, or validated; then launched.

A valid call leaves its Kind: torch's own guard over the types, sizes, strides and devices of its tensors,
which compares all of them in a fraction of a microsecond, and the launcher that the pipeline uses, too. The
next call of that kind is launched at once. Python reads one attribute of one tensor in some 0.1 us, which is
why nothing on that way is a loop over tensors or a function of its own, and why two functions are alike.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_dynamo_compiling

from kvexp.api import cache_checks, checks
from kvexp.api.launch_cache import Kind, Known
from kvexp.errors import Unsupported
from kvexp.experiment import Choice
from kvexp.impl import make

F = TypeVar("F", bound=Callable[..., None])

IMPLS = {
    "cuda": "kvexp.impl.cuda.Cuda",
    "triton": "kvexp.impl.triton.Triton",
    "torch": "kvexp.impl.torch.Torch",
}


class TwoCaches(Protocol):
    """A library function that writes a key cache and a value cache."""

    def __call__(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        *,
        impl: str = "cuda",
        check_slots: bool = False,
    ) -> None:
        """See `kvexp.api`."""


class OneCache(Protocol):
    """A library function that writes one cache of K and V."""

    def __call__(
        self,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        *,
        impl: str = "cuda",
        check_slots: bool = False,
    ) -> None:
        """See `kvexp.api`."""


def two_caches(op: str, doc: str) -> TwoCaches:
    """The library's function for an op with a key cache and a value cache."""
    known = Known()

    def function(
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        *,
        impl: str = "cuda",
        check_slots: bool = False,
    ) -> None:
        if is_dynamo_compiling():
            arguments = key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale
            return _registered(op, arguments, impl, check_slots)
        tensors: tuple[Any, ...]
        if kv_cache_dtype == "auto" or k_scale is None or v_scale is None:
            tensors, count = (key, value, key_cache, value_cache, slot_mapping), 5
        elif k_scale is v_scale:
            tensors, count = (key, value, key_cache, value_cache, slot_mapping, k_scale), 6
        else:
            tensors, count = (key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale), 7
        try:
            same = impl, kv_cache_dtype, slot_mapping.numel(), count
            alike = () if key.is_nested else known.get(same, ())  # torch's guard aborts on a nested tensor
        except (AttributeError, TypeError):  # no tensor or no word, as validation will say
            alike = ()
        for kind in alike:
            if kind.check(*tensors) and not check_slots:
                key_at, value_at = key.data_ptr(), value.data_ptr()
                key_cache_at, value_cache_at = key_cache.data_ptr(), value_cache.data_ptr()
                if (key_at | value_at) & 15 == kind.rows_at and (
                    key_cache_at | value_cache_at
                ) & 15 == kind.caches_at:
                    k_at = v_at = 0
                    if count > 5 and k_scale is not None and v_scale is not None:
                        k_at, v_at = k_scale.data_ptr(), v_scale.data_ptr()
                    kind.launch(
                        key_at, value_at, key_cache_at, value_cache_at, slot_mapping.data_ptr(), k_at, v_at
                    )
                    return None
        arguments = key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale
        return _first(op, arguments, impl, check_slots, known, tensors)

    return _named(function, op, doc)


def one_cache(op: str, doc: str) -> OneCache:
    """The library's function for an op with one cache of K and V."""
    known = Known()

    def function(
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        *,
        impl: str = "cuda",
        check_slots: bool = False,
    ) -> None:
        if is_dynamo_compiling():
            arguments = key, value, kv_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale
            return _registered(op, arguments, impl, check_slots)
        tensors: tuple[Any, ...]
        if kv_cache_dtype == "auto" or k_scale is None or v_scale is None:
            tensors, count = (key, value, kv_cache, slot_mapping), 4
        elif k_scale is v_scale:
            tensors, count = (key, value, kv_cache, slot_mapping, k_scale), 5
        else:
            tensors, count = (key, value, kv_cache, slot_mapping, k_scale, v_scale), 6
        try:
            same = impl, kv_cache_dtype, slot_mapping.numel(), count
            alike = () if key.is_nested else known.get(same, ())  # torch's guard aborts on a nested tensor
        except (AttributeError, TypeError):  # no tensor or no word, as validation will say
            alike = ()
        for kind in alike:
            if kind.check(*tensors) and not check_slots:
                key_at, value_at, kv_cache_at = key.data_ptr(), value.data_ptr(), kv_cache.data_ptr()
                if (key_at | value_at) & 15 == kind.rows_at and kv_cache_at & 15 == kind.caches_at:
                    k_at = v_at = 0
                    if count > 4 and k_scale is not None and v_scale is not None:
                        k_at, v_at = k_scale.data_ptr(), v_scale.data_ptr()
                    kind.launch(key_at, value_at, kv_cache_at, slot_mapping.data_ptr(), k_at, v_at)
                    return None
        arguments = key, value, kv_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale
        return _first(op, arguments, impl, check_slots, known, tensors)

    return _named(function, op, doc)


def _named(function: F, op: str, doc: str) -> F:
    function.__name__ = function.__qualname__ = op
    function.__doc__, function.__module__ = doc, "kvexp"
    return function


def _registered(op: str, arguments: tuple[Any, ...], impl: str, check_slots: bool) -> None:
    getattr(torch.ops.kvexp, op)(*arguments, impl, check_slots)


def _first(
    op: str,
    arguments: tuple[Any, ...],
    impl: str,
    check_slots: bool,
    known: Known,
    tensors: tuple[Any, ...],
) -> None:
    """The first call of its kind, or one that is none: validated, launched and remembered.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument will not do, or the implementation cannot.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)}, not {impl!r}")
    if _len_torch_dispatch_stack() or any(isinstance(argument, FakeTensor) for argument in arguments):
        return _registered(op, arguments, impl, check_slots)
    op = cache_checks.op_of_caches(op, arguments[2])
    call = checks.valid(op, arguments)
    if check_slots:
        checks.slots(call)
    if not call.num_slots:
        return None
    if impl == "cuda" and call.device.type != "cuda":
        raise ValueError(f"impl='cuda' needs tensors on a GPU, and key is on {call.device}")
    made = implementation(impl, str(call.device))
    try:
        if call.device.type != "cuda" or not hasattr(made, "launcher"):
            # Caches may have been made in inference mode or outside it.
            with torch.inference_mode():
                getattr(made, op)(*call.arguments)()
            return None
        launcher = made.launcher(op, *call.arguments)
    except Unsupported as refusal:
        raise ValueError(f"impl={impl!r} cannot do this call: {refusal}") from refusal
    kind = Kind(tensors, call, launcher)
    kind.launch(*call.addresses)
    if check_slots:
        return None
    known.remember((impl, arguments[-3], call.num_tokens, len(tensors)), kind, tensors)
    return None


@functools.cache
def implementation(name: str, device: str) -> Any:
    """The implementation for a device, made once.

    Raises:
        ValueError: It cannot run on that device.
    """
    try:
        return make(Choice(name, IMPLS[name]), device=device)
    except Unsupported as refusal:
        raise ValueError(f"impl={name!r} cannot run on {device}: {refusal}") from refusal
