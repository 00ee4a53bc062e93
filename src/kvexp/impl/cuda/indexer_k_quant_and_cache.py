"""indexer_k_quant_and_cache: the specialisation of its kernel, in which eight lanes write a key."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from kvexp.impl.cuda.items import Items, get_strides, measure_access
from kvexp.impl.cuda.launcher import Fitted, Macros, Spec
from kvexp.impl.cuda.options import Options

ROW_LANES = 8
"""Lanes that write a key."""


@dataclass(frozen=True, kw_only=True)
class Keys(Spec):
    """The compile-time constants of one specialisation.

    Attributes:
        items: The items of a key and their conversion.
        block_size: Slots of a block.
        power_of_two: Whether a scale is one.
        source_access: Bytes that divide every address of a key, at most 16.
        cache_access: The same of a block of the cache.
        row_stride: Items from one key to the next.
        block_stride: Bytes from one block to the next.
    """

    items: Items
    block_size: int
    power_of_two: bool
    source_access: int
    cache_access: int
    row_stride: int
    block_stride: int

    kernel = "indexer_k_quant_and_cache"
    num_addresses = 3

    def threads(self, num_tokens: int) -> int:
        """See `Spec.threads`."""
        return -(-num_tokens // self.unroll) * ROW_LANES

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """See `Spec.sizes`."""
        return (num_tokens,)

    @property
    def macros(self) -> Macros:
        """The constants as macros of the source."""
        return (
            *self.items.macros,
            ("BLOCK_SIZE", self.block_size),
            ("POWER_OF_TWO", int(self.power_of_two)),
            ("SOURCE_ACCESS", self.source_access),
            ("CACHE_ACCESS", self.cache_access),
            ("K_STRIDE", f"{self.row_stride}ll"),
            ("BLOCK_STRIDE", f"{self.block_stride}ll"),
            ("UNROLL", self.unroll),
            ("WIDE_INDEX", int(self.wide_index)),
            ("THREADS", self.cta_threads),
        )

    def tuned(self, options: Options, num_tokens: int, sm_count: int) -> Self:
        """See `Spec.tuned`."""
        return replace(self, unroll=options.unroll or 1).with_ctas(options, num_tokens)


def fit(
    k: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    quant_block_size: int,
    scale_fmt: str,
    *,
    options: Options,
) -> Fitted:
    """Return the specialisation for these tensors."""
    num_blocks, block_size, _ = kv_cache.shape
    (block_stride,) = get_strides(kv_cache, 1)
    source = str(k.dtype).removeprefix("torch.")
    _, source_access = measure_access(k.itemsize, (k.stride(0),), k)
    _, cache_access = measure_access(1, (block_stride,), kv_cache)
    spec = Keys(
        items=Items(source, "E4M3", software_fp8=options.software_fp8),
        block_size=block_size,
        power_of_two=scale_fmt == "ue8m0",
        source_access=source_access,
        cache_access=cache_access,
        row_stride=k.stride(0),
        block_stride=block_stride,
    )
    return Fitted(spec, (num_blocks * block_size,), slot_mapping.shape[0])
