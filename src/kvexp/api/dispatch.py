"""Make the library's function of an op: it validates an eager call, or recognises it, and launches it.

A valid call leaves a GuardedLaunch: torch's own guard over the dtypes, sizes, strides and devices of its
tensors, which compares all of them in a fraction of a microsecond, and the launch that the pipeline uses. The
next call that passes the guard is launched at once. Python takes about 0.1 us to read one attribute of one
tensor, so the path of such a call has no loop over tensors and no helper: its source is generated from the
parameters of the op.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_dynamo_compiling

from kvexp.api.launch_cache import GuardedLaunch, LaunchCache
from kvexp.errors import Unsupported
from kvexp.experiment import Choice
from kvexp.impl import make
from kvexp.op import Op

IMPLS = {
    "cuda": "kvexp.impl.cuda.Cuda",
    "triton": "kvexp.impl.triton.Triton",
    "torch": "kvexp.impl.torch.Torch",
}

SOURCE = """
def make_function(cache, is_dynamo_compiling, call_operator, validate_and_launch):
    def {name}({parameters}, *, impl="cuda", check_slots=False):
        if is_dynamo_compiling():
            return call_operator("{name}", ({arguments}), impl, check_slots)
        {find_tensors}
        try:
            cache_key = impl, {words}, slot_mapping.numel(), count
            # The guard aborts on nested tensors.
            entries = () if {first}.is_nested else cache.get(cache_key, ())
        except (AttributeError, TypeError):  # not a tensor or not a word; validation reports it
            entries = ()
        for guarded in entries:
            if guarded.check(*tensors) and not check_slots:
                {addresses}
                if ({reads}) & 15 == guarded.reads_at and ({writes}) & 15 == guarded.writes_at:
                    {scale_addresses}
                    guarded.launch({launched})
                    return None
        return validate_and_launch(({arguments}), impl, check_slots, cache, tensors)
    return {name}
"""
"""The library's function of an op, around a cache of its own."""

FIND_TENSORS = """
        if {unread}:
            tensors, count = ({tensors}), {count}
        elif {shared}:
            tensors, count = ({tensors}, {first_scale}), {count} + 1
        else:
            tensors, count = ({tensors}, {scales}), {count} + {scale_count}
"""
"""Its lines that list the tensors which the guard checks, for an op with scales."""

SCALE_ADDRESSES = """
                    {scale_ends} = 0
                    if count > {count}:
                        {scale_addresses}
"""
"""Its lines that take the addresses of the scales, 0 where they are not read."""


def make_function(op: Op) -> Callable[..., None]:
    """Return the library's function of an op, with the signature and the docstring of `op.function`."""
    scope: dict[str, Any] = {}
    exec(compile(_make_source(op), f"<kvexp.{op.name}>", "exec"), scope)
    validate_and_launch = functools.partial(_validate_and_launch, op)
    function: Callable[..., None] = scope["make_function"](
        LaunchCache(), is_dynamo_compiling, _call_operator, validate_and_launch
    )
    function.__qualname__, function.__module__ = op.name, "kvexp"
    function.__doc__ = op.function.__doc__
    function.__annotations__ = inspect.get_annotations(op.function)
    return function


def _make_source(op: Op) -> str:
    names, scales = op.parameters, op.scales
    tensors = [name for name in names if name not in (*scales, *op.words)]
    is_copied = ['kv_cache_dtype == "auto"'] * ("kv_cache_dtype" in op.words)
    ends = {name: f"{name}_at" for name in (*tensors, *scales)}
    addresses = {name: f"{ends[name]} = {name}.data_ptr()" for name in ends}
    listed = ", ".join(tensors)
    find_tensors, scale_addresses = f"tensors, count = ({listed}), {len(tensors)}", ""
    if scales:
        find_tensors = FIND_TENSORS.format(
            unread=" or ".join((*is_copied, *(f"{name} is None" for name in scales))),
            shared=" is ".join(scales) if len(scales) > 1 else False,
            first_scale=scales[0],
            scales=", ".join(scales),
            scale_count=len(scales),
            tensors=listed,
            count=len(tensors),
        ).strip()
        scale_addresses = SCALE_ADDRESSES.format(
            scale_ends=" = ".join(ends[name] for name in scales),
            scale_addresses="; ".join(addresses[name] for name in scales),
            count=len(tensors),
        ).strip()
    return SOURCE.format(
        name=op.name,
        parameters=", ".join(map(_format_parameter, op.list_parameters())),
        arguments=", ".join(names),
        words=", ".join(op.words),
        first=names[0],
        addresses="; ".join(addresses[name] for name in tensors),
        reads=" | ".join(ends[name] for name in op.reads),
        writes=" | ".join(ends[name] for name in op.writes),
        launched=", ".join(ends.values()),
        find_tensors=find_tensors,
        scale_addresses=scale_addresses,
    )


def _format_parameter(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return f"{parameter.name}{default}"


def _call_operator(op: str, arguments: tuple[Any, ...], impl: str, check_slots: bool) -> None:
    """Call the registered operator, which torch can trace."""
    getattr(torch.ops.kvexp, op)(*arguments, impl, check_slots)


def _validate_and_launch(
    op: Op,
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
        return _call_operator(op.name, arguments, impl, check_slots)
    call = op.validate(arguments)
    if check_slots:
        call.op.check_slots(call)
    if not call.num_slots:
        return None
    if impl == "cuda" and call.device.type != "cuda":
        raise ValueError(f"impl='cuda' needs tensors on a GPU, and {op.reads[0]} is on {call.device}")
    made = make_impl(impl, str(call.device))
    try:
        if call.device.type != "cuda" or not hasattr(made, "launcher"):
            # The caches may or may not be inference tensors.
            with torch.inference_mode():
                getattr(made, call.op.name)(*call.arguments)()
            return None
        launcher = made.launcher(call.op.name, *call.arguments)
    except Unsupported as refusal:
        raise ValueError(f"impl={impl!r} cannot do this call: {refusal}") from refusal
    guarded = GuardedLaunch(tensors, call, launcher)
    guarded.launch(*call.addresses)
    if check_slots:
        return None
    words = (arguments[op.parameters.index(name)] for name in op.words)
    cache.remember((impl, *words, call.num_tokens, len(tensors)), guarded, tensors)
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
