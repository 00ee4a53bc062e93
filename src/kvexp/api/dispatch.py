"""Validate eager calls, or recognise them as valid, and launch them.

A valid call leaves a GuardedLaunch: torch's own guard over the dtypes, sizes, strides and devices of its
tensors, which compares all of them in a fraction of a microsecond, and the launch that the pipeline uses. The
next call that passes the guard is launched at once. Python takes about 0.1 us to read one attribute of one
tensor, so this path is inlined by hand: no loop over tensors, no helper, two similar functions.
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
from kvexp.api.launch_cache import GuardedLaunch, LaunchCache
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


def make_two_cache_function(op: str, doc: str) -> TwoCaches:
    """Return the library's function for an op with a key cache and a value cache."""
    cache = LaunchCache()

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
            return _call_operator(op, arguments, impl, check_slots)
        tensors: tuple[Any, ...]
        if kv_cache_dtype == "auto" or k_scale is None or v_scale is None:
            tensors, count = (key, value, key_cache, value_cache, slot_mapping), 5
        elif k_scale is v_scale:
            tensors, count = (key, value, key_cache, value_cache, slot_mapping, k_scale), 6
        else:
            tensors, count = (key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale), 7
        try:
            cache_key = impl, kv_cache_dtype, slot_mapping.numel(), count
            entries = () if key.is_nested else cache.get(cache_key, ())  # the guard aborts on nested tensors
        except (AttributeError, TypeError):  # not a tensor or not a str; validation reports it
            entries = ()
        for guarded in entries:
            if guarded.check(*tensors) and not check_slots:
                key_at, value_at = key.data_ptr(), value.data_ptr()
                key_cache_at, value_cache_at = key_cache.data_ptr(), value_cache.data_ptr()
                if (key_at | value_at) & 15 == guarded.rows_at and (
                    key_cache_at | value_cache_at
                ) & 15 == guarded.caches_at:
                    k_at = v_at = 0
                    if count > 5 and k_scale is not None and v_scale is not None:
                        k_at, v_at = k_scale.data_ptr(), v_scale.data_ptr()
                    guarded.launch(
                        key_at, value_at, key_cache_at, value_cache_at, slot_mapping.data_ptr(), k_at, v_at
                    )
                    return None
        arguments = key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale
        return _validate_and_launch(op, arguments, impl, check_slots, cache, tensors)

    return _name(function, op, doc)


def make_one_cache_function(op: str, doc: str) -> OneCache:
    """Return the library's function for an op with one cache of K and V."""
    cache = LaunchCache()

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
            return _call_operator(op, arguments, impl, check_slots)
        tensors: tuple[Any, ...]
        if kv_cache_dtype == "auto" or k_scale is None or v_scale is None:
            tensors, count = (key, value, kv_cache, slot_mapping), 4
        elif k_scale is v_scale:
            tensors, count = (key, value, kv_cache, slot_mapping, k_scale), 5
        else:
            tensors, count = (key, value, kv_cache, slot_mapping, k_scale, v_scale), 6
        try:
            cache_key = impl, kv_cache_dtype, slot_mapping.numel(), count
            entries = () if key.is_nested else cache.get(cache_key, ())  # the guard aborts on nested tensors
        except (AttributeError, TypeError):  # not a tensor or not a str; validation reports it
            entries = ()
        for guarded in entries:
            if guarded.check(*tensors) and not check_slots:
                key_at, value_at, kv_cache_at = key.data_ptr(), value.data_ptr(), kv_cache.data_ptr()
                if (key_at | value_at) & 15 == guarded.rows_at and kv_cache_at & 15 == guarded.caches_at:
                    k_at = v_at = 0
                    if count > 4 and k_scale is not None and v_scale is not None:
                        k_at, v_at = k_scale.data_ptr(), v_scale.data_ptr()
                    guarded.launch(key_at, value_at, kv_cache_at, slot_mapping.data_ptr(), k_at, v_at)
                    return None
        arguments = key, value, kv_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale
        return _validate_and_launch(op, arguments, impl, check_slots, cache, tensors)

    return _name(function, op, doc)


def _name(function: F, op: str, doc: str) -> F:
    """Give the function the op's name and its docstring."""
    function.__name__ = function.__qualname__ = op
    function.__doc__, function.__module__ = doc, "kvexp"
    return function


def _call_operator(op: str, arguments: tuple[Any, ...], impl: str, check_slots: bool) -> None:
    """Call the registered operator, which torch can trace."""
    getattr(torch.ops.kvexp, op)(*arguments, impl, check_slots)


def _validate_and_launch(
    op: str,
    arguments: tuple[Any, ...],
    impl: str,
    check_slots: bool,
    cache: LaunchCache,
    tensors: tuple[Any, ...],
) -> None:
    """Validate a call that no guard recognises, launch it, and remember it.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is invalid, or the implementation cannot do the call.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)}, not {impl!r}")
    if _len_torch_dispatch_stack() or any(isinstance(argument, FakeTensor) for argument in arguments):
        return _call_operator(op, arguments, impl, check_slots)
    op = cache_checks.find_op(op, arguments[2])
    call = checks.validate(op, arguments)
    if check_slots:
        checks.check_slot_range(call)
    if not call.num_slots:
        return None
    if impl == "cuda" and call.device.type != "cuda":
        raise ValueError(f"impl='cuda' needs tensors on a GPU, and key is on {call.device}")
    made = make_impl(impl, str(call.device))
    try:
        if call.device.type != "cuda" or not hasattr(made, "launcher"):
            # The caches may or may not be inference tensors.
            with torch.inference_mode():
                getattr(made, op)(*call.arguments)()
            return None
        launcher = made.launcher(op, *call.arguments)
    except Unsupported as refusal:
        raise ValueError(f"impl={impl!r} cannot do this call: {refusal}") from refusal
    guarded = GuardedLaunch(tensors, call, launcher)
    guarded.launch(*call.addresses)
    if check_slots:
        return None
    cache.remember((impl, arguments[-3], call.num_tokens, len(tensors)), guarded, tensors)
    return None


@functools.cache
def make_impl(name: str, device: str) -> Any:
    """Make the implementation for a device once.

    Raises:
        ValueError: It cannot run on that device.
    """
    try:
        return make(Choice(name, IMPLS[name]), device=device)
    except Unsupported as refusal:
        raise ValueError(f"impl={name!r} cannot run on {device}: {refusal}") from refusal
