"""Offer the ops as library functions that validate a call and launch it as the pipeline does.

Imports nothing of kvexp but bench, impl, op, layout and experiment and the modules below them.

An eager call validates what can be checked without reading memory, and launches on torch's current stream. A
later call with tensors of the same dtypes, sizes and strides is not validated again and costs little more
than its launch. Under torch.compile, and wherever torch's operators are traced, the registered op
`torch.ops.kvexp` takes its place.

All three raise TypeError for an argument of the wrong type, and ValueError for one of a wrong shape, stride,
device or name, or where the implementation cannot do the call; the message names the argument.
"""

from kvexp import op as ops
from kvexp.api import dispatch, torch_library
from kvexp.api.caches import KVCache, allocate, allocate_layers, select_layout, stride_order
from kvexp.api.verification import verify

FUNCTIONS = {name: dispatch.make_function(ops.load(name)) for name in ops.list_functions()}
"""The library's function of each op."""

for name, function in FUNCTIONS.items():
    torch_library.register(ops.load(name), function)
globals().update(FUNCTIONS)

__all__ = [
    "KVCache",
    "allocate",
    "allocate_layers",
    "select_layout",
    "stride_order",
    "verify",
    *FUNCTIONS,
]
