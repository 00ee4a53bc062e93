"""Describe the items that a kernel moves, and the accesses that their tensors allow."""

import math
from dataclasses import dataclass

from torch import Tensor

from kvexp.impl.cuda.launcher import Macros

VECTOR_BYTES = 16
"""The widest access of one thread, and the chunk of a head-major key cache."""

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1}
FORMATS = {"auto": "COPIED", "fp8_e4m3": "E4M3", "fp8_e5m2": "E5M2"}
"""The kernels' name of the cache's items by `kv_cache_dtype`. An fp8 source is always COPIED."""


@dataclass(frozen=True)
class Items:
    """The type of a source item and its conversion to a cache item.

    Attributes:
        source: torch's name of the source's dtype.
        cache: `COPIED`, `E4M3` or `E5M2`.
        scale_per_head: A scale tensor holds one scale for each head, not one for all.
        software_fp8: Use on every GPU the conversion that GPUs before sm_89 need.
    """

    source: str
    cache: str
    scale_per_head: bool = False
    software_fp8: bool = False

    @property
    def copied(self) -> bool:
        """Say whether the cache holds the source's bytes."""
        return self.cache == "COPIED"

    @property
    def source_bytes(self) -> int:
        """Bytes of a source item."""
        return ITEM_BYTES[self.source]

    @property
    def cache_bytes(self) -> int:
        """Bytes of a cache item."""
        return self.source_bytes if self.copied else 1

    @property
    def macros(self) -> Macros:
        """The macros of convert.cuh; copies of items of one width share them."""
        macros: Macros = (
            ("SOURCE_BYTES", self.source_bytes),
            ("SOURCE_IS_BFLOAT16", int(self.source == "bfloat16" and not self.copied)),
            ("CACHE_FORMAT", self.cache),
            ("SCALE_PER_HEAD", int(self.scale_per_head)),
        )
        return (*macros, ("SOFTWARE_FP8", 1)) if self.software_fp8 and not self.copied else macros


def fit_items(key: Tensor, kv_cache_dtype: str, k_scale: Tensor | None, software_fp8: bool) -> Items:
    """Return how the items of these tensors are converted; a scale that is not read is ignored."""
    source = str(key.dtype).removeprefix("torch.")
    cache = "COPIED" if ITEM_BYTES[source] == 1 else FORMATS[kv_cache_dtype]
    if cache == "COPIED" or k_scale is None:
        return Items(source, cache)
    return Items(source, cache, scale_per_head=k_scale.numel() > 1, software_fp8=software_fp8)


def choose_vector(largest: int, run: int, *accesses: tuple[int, int]) -> int:
    """Return the elements of one access: the largest power of two that runs, rows and addresses allow.

    Args:
        largest: The upper limit, a power of two.
        run: Elements that must be a whole number of accesses, for example a head's.
        *accesses: See `measure_access`, for each side. More than `VECTOR_BYTES` are accessed in pieces.
    """
    vec = largest
    while vec > 1 and (run % vec or any(align % min(VECTOR_BYTES, vec * item) for item, align in accesses)):
        vec //= 2
    return vec


def measure_access(item_bytes: int, strides: tuple[int, ...], *tensors: Tensor) -> tuple[int, int]:
    """Return the item's bytes, and those that divide every address at these strides in items, at most 16."""
    addresses = (tensor.data_ptr() for tensor in tensors)
    return item_bytes, math.gcd(VECTOR_BYTES, *addresses, *(stride * item_bytes for stride in strides))


def get_strides(tensor: Tensor, dims: int) -> tuple[int, ...]:
    """Return the strides of the first dims; 0 for a dim of size 1, whose stride is arbitrary."""
    return tuple(0 if tensor.shape[dim] == 1 else tensor.stride(dim) for dim in range(dims))
