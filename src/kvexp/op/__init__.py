"""Define the ops: one file each, found by its name.

Imports nothing of kvexp but case, errors, layout and workload.

An op says which layouts it takes, which bytes one call must move, what it reads and writes, how an
implementation is bound to these tensors, and what the library's function of it looks like. The files of ops
import no torch.
"""

import functools
import importlib
import inspect
import operator
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout

if TYPE_CHECKING:
    import torch

    from kvexp.workload import Memory

Call = Callable[[], None]
"""A bound call: it is fully set up, takes no arguments and returns nothing."""

FP8 = ("fp8_e4m3", "fp8_e5m2")
"""The 8-bit floats, both as formats of a cache and as types of keys and values."""

DS_MLA = "fp8_ds_mla"
"""The format of a latent row that holds its own scales; see `quantize.quantize_tiles`."""

PER_TOKEN_HEAD = ("int8_per_token_head", "fp8_per_token_head")
"""The formats of heads of a token that hold their own scales; see `quantize.quantize_heads`."""

NVFP4 = "nvfp4"
"""The format of items of 4 bits; see `quantize_nvfp4.quantize_nvfp4`."""

SHARED = ("arguments", "cache_write", "quantize", "quantize_nvfp4")
"""Files of this package that are no ops."""


@dataclass(frozen=True)
class ValidCall:
    """A call of the library whose arguments are valid.

    Attributes:
        op: The op that is called.
        arguments: The op's, in its order, with the alias of a format resolved and None for what is not read.
        num_tokens: Tokens of the call.
        num_slots: Slots of the cache.
        device: The `torch.device` of all tensors.
    """

    op: "Op"
    arguments: tuple[Any, ...]
    num_tokens: int
    num_slots: int
    device: Any

    @property
    def addresses(self) -> tuple[int, ...]:
        """Addresses of the tensors, in the op's order; 0 for None."""
        return tuple(
            0 if argument is None else argument.data_ptr()
            for argument in self.arguments
            if argument is None or hasattr(argument, "data_ptr")
        )

    def find_alignment(self, names: Sequence[str]) -> int:
        """Return the last four bits of the bitwise or of these tensors' addresses."""
        arguments = dict(zip(self.op.parameters, self.arguments, strict=True))
        return functools.reduce(operator.or_, (int(arguments[name].data_ptr()) for name in names)) & 15


class Op:
    """The contract of an op.

    Attributes:
        name: Its name in the configuration, and that of its file.
        function: The library's function of it without a body: its parameters, their types, and its docstring.
        reads: Parameters of the tensors that it reads in wide accesses.
        writes: Parameters of the tensors that it writes.
        scales: Of an op of the library, the parameters of the scales, if any.
        words: Of an op of the library, the parameters that are no tensors but words or numbers.
        equal_heads: Whether K and V have heads of one size.
        may_lack_values: Whether `head_size_v` may be 0.
        formats: What `kv_cache_dtype` may be, as `op.arguments.resolve_format` resolves it; an op without
            that parameter has one format.
        place: The parameter that says where a call writes, another in each call of a series.
        in_library: Whether the library has a function of it.
        poses_clauses: Whether implementations are asked about the clauses of docs/semantics.md.
        twins: For `layout=auto`: the layout that it takes in place of one that it cannot take.
        deed: What a call does, in words, with columns of a row in braces; empty: its name stands for it.
        role: Its part in serving: `write` or `read` in each layer of a step, or `transfer` of a request.
    """

    name: str
    function: Callable[..., None]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    scales: tuple[str, ...] = ()
    words: tuple[str, ...] = ("kv_cache_dtype",)
    equal_heads: bool = True
    may_lack_values: bool = False
    formats: tuple[str, ...] = ("auto", *FP8)
    place: str
    in_library: bool = False
    poses_clauses: bool = False
    twins: Mapping[str, str] = MappingProxyType({})
    deed: str = ""
    role: str = ""

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """Check that the op is defined for the case.

        Args:
            case: Any point of the curve.
            layout: The case's layout.
            item_bytes: Bytes of one source item.

        Raises:
            Unsupported: The combination has no meaning; the message says why.
        """
        raise NotImplementedError

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """Return the bytes that one call must read and the bytes that it must write, each once."""
        raise NotImplementedError

    def count_indices(self, case: Case) -> int:
        """Return how many indices of 8 bytes a call reads, which `bytes_moved` contains."""
        return case.num_tokens

    def count_pieces(self, case: Case, layout: Layout, item_bytes: int) -> tuple[int, int] | None:
        """Return how many contiguous pieces a call copies, and the bytes of each; None of what is no copy."""
        return None

    def list_devices(self, case: Case) -> list[str]:
        """List the devices that a curve uses, none of which another process may measure on meanwhile.

        Raises:
            Unsupported: This machine lacks one.
        """
        return [case.device]

    def count_places(self, case: Case) -> int:
        """Return the number of places of a call of that size, no two of which overlap; at least one.

        Raises:
            Unsupported: There is none.
        """
        raise NotImplementedError

    def allocate(
        self, largest: Case, layout: Layout, source: "torch.dtype", cold: Sequence[tuple[Case, int]] = ()
    ) -> AbstractContextManager["Memory"]:
        """Allocate the memory of a curve inside the block, and free it at the end.

        Args:
            largest: The curve's point with the most tokens.
            layout: The cache's.
            source: The type that `dtype` names.
            cold: Points with so many windows that share nothing.

        Raises:
            Unsupported: The memory does not fit the device.
        """
        raise NotImplementedError

    def validate(self, arguments: Sequence[Any]) -> ValidCall:
        """Check the arguments of a call of the library, in the order of `parameters`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: An argument's shape, strides or device is wrong.
        """
        raise NotImplementedError

    def check_slots(self, call: ValidCall) -> None:
        """Check that no slot is past the last; wait for the device.

        Raises:
            ValueError: A slot is, or a CUDA graph is being captured, which cannot wait.
        """
        raise NotImplementedError

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names of the arguments that an implementation takes, in order."""
        return tuple(each.name for each in self.list_parameters())

    def list_parameters(self) -> list[inspect.Parameter]:
        """List the parameters of `function` that an implementation takes."""
        found = inspect.signature(self.function).parameters.values()
        return [each for each in found if each.kind is each.POSITIONAL_OR_KEYWORD]

    def bind(self, impl: Any, tensors: Any, place: Any) -> Call:
        """Bind the implementation's call to these tensors.

        Args:
            impl: An implementation with a method of the op's name.
            tensors: A `workload.Tensors`.
            place: One of `tensors.places`.

        Raises:
            Unsupported: The implementation lacks the op, or refuses the tensors.
        """
        return get_method(impl, self.name)(*self.list_arguments(tensors, place))

    def list_arguments(self, tensors: Any, place: Any) -> tuple[Any, ...]:
        """List what an implementation takes: by default attributes of the tensors, and the place."""
        return tuple(place if name == self.place else getattr(tensors, name) for name in self.parameters)


def list_names() -> tuple[str, ...]:
    """Return the names of the ops of this package."""
    return tuple(file.name for file in pkgutil.iter_modules(__path__) if file.name not in SHARED)


def list_functions() -> tuple[str, ...]:
    """Return the names of the ops of this package of which the library has a function."""
    return tuple(name for name in list_names() if load(name).in_library)


@functools.cache
def load(name: str) -> Op:
    """Return the op of this package that has the name; see `list_names`."""
    found = vars(importlib.import_module(f"{__name__}.{name}")).values()
    made: Op = next(each for each in found if isinstance(each, type) and vars(each).get("name") == name)()
    return made


def check_planes(case: Case, layout: Layout, does: str) -> None:
    """Check that the layout has flash planes, and K and V of one head size unless they are packed.

    Raises:
        Unsupported: It has others; `does` is what the op does with planes.
    """
    if layout.shape != "flash":
        raise Unsupported(
            f"op={case.op} {does} planes of [num_blocks, block_size, num_heads, head_size], which "
            f"layout={layout.name} does not have; try layout=NHD"
        )
    if not layout.packed and case.head_size_v != case.head_size:
        raise Unsupported(
            f"op={case.op} {does} K and V of one head size in layout={layout.name}, not "
            f"{case.head_size} and {case.head_size_v}; packed layouts may have two"
        )


def check_unused(case: Case, why: str, **defaults: Any) -> None:
    """Check that keys of the workload, which have no meaning for the op, have their defaults.

    Raises:
        Unsupported: One has another value; `why` says what the op does.
    """
    for key, default in defaults.items():
        if getattr(case, key) != default:
            raise Unsupported(f"op={case.op} {why}, so workload.{key} has no meaning there")


def get_method(impl: Any, op: str) -> Callable[..., Call]:
    """Return the implementation's method for the op.

    Raises:
        Unsupported: It has none.
    """
    method: Callable[..., Call] | None = getattr(impl, op, None)
    if method is None:
        raise Unsupported(f"impl={impl.name} has no {op}")
    return method
