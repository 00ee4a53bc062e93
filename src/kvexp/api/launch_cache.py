"""Kinds of calls that are known to be valid, and how each is launched."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kvexp.api.checks import Valid

MOST_KINDS = 8192
"""Keys of `Known`; all kinds are dropped when there are more."""

MOST_ALIKE = 32
"""Kinds of one key that are kept; the oldest goes first."""

Launch = Callable[..., None]
Same = tuple[str, str, int, int]
"""What finds the kinds of an op: implementation, format, number of tokens, and tensors that are looked at."""

# What torch.compile guards its graphs with. It is not public: where it is gone, every call is validated.
# It compares the dispatch keys, too, and so knows lazy views, sparse tensors and subclasses from others. A
# nested tensor of the strided layout ends the process there (torch 2.13: an exception of C++ that nobody
# catches), so keys are looked at before; the other tensors are not, since each look costs some 0.05 us.
_guards: Any = getattr(torch._C._dynamo, "guards", None)
_Guard: Any = getattr(_guards, "TensorGuards", None)

_current_device: Any = getattr(torch._C, "_cuda_getDevice", None)


class Kind:
    """The calls that agree with a valid one, and are therefore valid themselves.

    Args:
        tensors: The call's, each once, without scales that it does not read.
        call: The call.
        launcher: The implementation's.

    Attributes:
        check: Whether as many tensors agree in type, sizes, strides and device.
        rows_at: The last four bits of the addresses of key or value.
        caches_at: The last four bits of the caches'.
        launch: Launches such a call, given the addresses of the op's tensors.
    """

    __slots__ = ("caches_at", "check", "launch", "rows_at")

    def __init__(self, tensors: Sequence[Tensor], call: Valid, launcher: Any) -> None:
        self.check: Callable[..., bool] = _guard(tensors) if _Guard else _never
        key, value, *caches = call.addresses[: 2 + call.num_caches]
        self.rows_at, self.caches_at = (key | value) & 15, (caches[0] | caches[-1]) & 15
        self.launch = _launch(call.num_tokens, call.device.index, launcher)


class Known(dict[Same, list[Kind]]):
    """The kinds of an op's calls that were valid, under what is cheap to find them by."""

    def remember(self, same: Same, kind: Kind, tensors: Sequence[Tensor]) -> None:
        """Later calls of the kind find it, if it would find the call that it was made from."""
        if not kind.check(*tensors):
            return
        if len(self) >= MOST_KINDS:
            self.clear()
        alike = self.setdefault(same, [])
        alike.append(kind)
        del alike[:-MOST_ALIKE]


def _guard(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    sizes = [list(tensor.shape) for tensor in tensors]
    strides = [list(tensor.stride()) for tensor in tensors]
    check: Callable[..., bool] = _Guard(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    ).check
    return check


def _launch(num_tokens: int, device: int, launcher: Any) -> Launch:
    if not num_tokens:
        return _nothing
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


def _never(*_tensors: Tensor) -> bool:
    return False


def _nothing(*_addresses: int) -> None:
    """The launch of no tokens."""
