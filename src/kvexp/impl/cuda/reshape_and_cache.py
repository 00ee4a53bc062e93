"""reshape_and_cache: how its kernel is specialised, fitted to tensors and tuned."""

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from kvexp.impl.cuda.items import VECTOR_BYTES, Items, choose_vector, fit_items, get_strides, measure_access
from kvexp.impl.cuda.launcher import SM_THREADS, Fitted, Macros, Spec
from kvexp.impl.cuda.options import Options, choose

SECTOR_BYTES = 32
"""The smallest unit of a memory write."""


@dataclass(frozen=True, kw_only=True)
class HeadMajor(Spec):
    """The compile-time constants of one specialisation of reshape_and_cache.cu.

    Attributes:
        num_heads: KV heads of a token.
        head_size: Elements of a head.
        block_size: Slots of a block.
        items: The items and their conversion.
        source_vec: Elements of one load.
        key_vec: Elements of one store into the key cache.
        row_strides: Items from one row to the next, of key and of value.
        block_strides: Items from one block to the next, of the key cache and of the value cache.
        group_tokens: Tokens of neighbouring lanes, a power of two; None for as many as fill a sector.
        slot_first: See `Options`.
        exchange: See `Options`.
        paired: See `Options`; None leaves it to `both`.
    """

    num_heads: int
    head_size: int
    block_size: int
    items: Items
    source_vec: int
    key_vec: int
    row_strides: tuple[int, int]
    block_strides: tuple[int, int]
    group_tokens: int | None = None
    slot_first: bool = False
    exchange: bool = False
    paired: bool | None = None

    kernel = "reshape_and_cache"
    num_addresses = 7

    @property
    def both(self) -> bool:
        """Say whether a thread moves a chunk of K and the same chunk of V, not one of either."""
        return self.items.copied if self.paired is None else self.paired

    def group_shift(self, num_tokens: int) -> int:
        """Return log2 of the tokens of a group: as many as fill a sector with items of V, or fewer."""
        most = self.group_tokens or SECTOR_BYTES // self.items.cache_bytes
        return min(most.bit_length() - 1, (num_tokens - 1).bit_length())

    def threads(self, num_tokens: int) -> int:
        """See `Spec.threads`; the last group counts as a whole one."""
        shift = self.group_shift(num_tokens)
        chunks = (1 if self.both else 2) * self.num_heads * self.head_size * self.items.cache_bytes
        return -(-num_tokens >> shift) * (chunks // VECTOR_BYTES) << shift

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """See `Spec.sizes`."""
        return num_tokens, self.group_shift(num_tokens)

    @property
    def macros(self) -> Macros:
        """The constants as macros of the source."""
        key_stride, value_stride = self.row_strides
        key_block_stride, value_block_stride = self.block_strides
        return (
            *self.items.macros,
            ("NUM_HEADS", self.num_heads),
            ("HEAD_SIZE", self.head_size),
            ("BLOCK_SIZE", self.block_size),
            ("SOURCE_VEC", self.source_vec),
            ("KEY_VEC", self.key_vec),
            ("KEY_STRIDE", f"{key_stride}ll"),
            ("VALUE_STRIDE", f"{value_stride}ll"),
            ("KEY_BLOCK_STRIDE", f"{key_block_stride}ll"),
            ("VALUE_BLOCK_STRIDE", f"{value_block_stride}ll"),
            ("BOTH", int(self.both)),
            ("SLOT_FIRST", int(self.slot_first)),
            ("EXCHANGE", int(self.exchange)),
            ("WIDE_INDEX", int(self.wide_index)),
            ("THREADS", self.cta_threads),
        )

    def tuned(self, options: Options, num_tokens: int, sm_count: int) -> Self:
        """See `Spec.tuned`."""
        spec = replace(self, paired=options.paired, group_tokens=options.group_tokens)
        exchange = choose(options.exchange, spec.exchanges(num_tokens, sm_count))
        # Otherwise the rows of exchanged tokens would be read twice.
        slot_first = choose(options.slot_first, exchange)
        return replace(spec, exchange=exchange, slot_first=slot_first).with_ctas(options, num_tokens)

    def exchanges(self, num_tokens: int, sm_count: int) -> bool:
        """Return whether groups of tokens are cut where spans of a block end, for which rows wait.

        Runs of slots that begin anywhere, as those of a batch of prompts, take a third less time. Runs that
        begin with a span take a few percent more, and yet more with few threads. Conversion to fp8 is not
        limited by the memory, so it gains nothing.
        """
        return self.items.copied and self.threads(num_tokens) >= sm_count * SM_THREADS


def fit(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, *others: Any, options: Options
) -> Fitted:
    """Return the specialisation for head-major caches, whose blocks are contiguous."""
    slot_mapping, kv_cache_dtype, k_scale, _ = others
    items = fit_items(key, kv_cache_dtype, k_scale, options.software_fp8)
    row_strides = (key.stride(0), value.stride(0))
    (key_block_stride,), (value_block_stride,) = get_strides(key_cache, 1), get_strides(value_cache, 1)
    chunk = VECTOR_BYTES // items.cache_bytes
    rows = measure_access(items.source_bytes, row_strides, key, value)
    # The value cache counts too: a cached launcher is found by the common alignment of both.
    caches = measure_access(items.cache_bytes, (key_block_stride,), key_cache, value_cache)
    spec = HeadMajor(
        num_heads=key.shape[1],
        head_size=key.shape[2],
        block_size=value_cache.shape[3],
        items=items,
        source_vec=choose_vector(chunk, chunk, rows),
        key_vec=choose_vector(chunk, chunk, caches),
        row_strides=row_strides,
        block_strides=(key_block_stride, value_block_stride),
    )
    return Fitted(spec, (value_cache.shape[0] * spec.block_size,), slot_mapping.shape[0])
