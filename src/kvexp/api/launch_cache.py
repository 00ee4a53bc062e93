"""Remember valid calls by torch's guards, each with its launch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kvexp.op import ValidCall

MAX_KEYS = 8192
"""Most keys of a `LaunchCache`; one more clears it."""

MAX_PER_KEY = 32
"""Most launches under one key; one more drops the oldest."""

Launch = Callable[..., None]
Key = tuple[Any, ...]
"""Implementation, words such as the format, number of tokens, and number of guarded tensors."""

# torch.compile's guard for its graphs. It is not public: where it is missing, every call is validated.
# It compares the dispatch keys, too, and so tells lazy views, sparse tensors and subclasses apart.
# A nested tensor of the strided layout ends the process there (torch 2.13: an uncaught C++ exception), so
# `dispatch` checks keys for it first; it does not check the other tensors, since each check costs 0.05 us.
_guards: Any = getattr(torch._C._dynamo, "guards", None)
_Guard: Any = getattr(_guards, "TensorGuards", None)

_current_device: Any = getattr(torch._C, "_cuda_getDevice", None)


class GuardedLaunch:
    """The launch of a valid call, and guards that recognise further valid calls.

    The tensors are the call's, each once, without scales that it does not read.

    Attributes:
        check: Whether as many tensors agree in dtype, sizes, strides and device.
        reads_at: The last four bits of the bitwise or of the addresses of the tensors in `op.reads`.
        writes_at: The same of those in `op.writes`.
        launch: Launches such a call on the addresses of the op's tensors.
    """

    __slots__ = ("check", "launch", "reads_at", "writes_at")

    def __init__(self, tensors: Sequence[Tensor], call: ValidCall, launcher: Any) -> None:
        self.check: Callable[..., bool] = _make_guard(tensors) if _Guard else _refuse
        self.reads_at, self.writes_at = map(call.find_alignment, (call.op.reads, call.op.writes))
        self.launch = _make_launch(call.num_tokens, call.device.index, launcher)


class LaunchCache(dict[Key, list[GuardedLaunch]]):
    """The launches of an op's valid calls, under a key that is cheap to make."""

    def remember(self, key: Key, guarded: GuardedLaunch, tensors: Sequence[Tensor]) -> None:
        """Store the launch, if its guards recognise the call that it was made from."""
        if not guarded.check(*tensors):
            return
        if len(self) >= MAX_KEYS:
            self.clear()
        launches = self.setdefault(key, [])
        launches.append(guarded)
        del launches[:-MAX_PER_KEY]


def _make_guard(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    sizes = [list(tensor.shape) for tensor in tensors]
    strides = [list(tensor.stride()) for tensor in tensors]
    check: Callable[..., bool] = _Guard(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    ).check
    return check


def _make_launch(num_tokens: int, device: int, launcher: Any) -> Launch:
    if not num_tokens:
        return _launch_nothing
    with torch.cuda.device(device):
        launch: Launch = launcher.prepare(num_tokens)
    if torch.cuda.device_count() == 1:
        return launch

    def on_device(*addresses: int) -> None:
        if _current_device() == device:
            launch(*addresses)
        else:
            with torch.cuda.device(device):
                launch(*addresses)

    return on_device


def _refuse(*_tensors: Tensor) -> bool:
    return False


def _launch_nothing(*_addresses: int) -> None:
    """Stand in for a launch of no tokens."""
