"""reshape_and_cache_flash: how its kernel is specialised, fitted to tensors and tuned."""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl.cuda.items import VECTOR_BYTES, Items, choose_vector, fit_items, get_strides, measure_access
from kvexp.impl.cuda.launcher import SM_THREADS, THREADS, Fitted, Macros, Spec
from kvexp.impl.cuda.options import Options, choose

FILLED = 3
"""How many times the threads must fill the GPU before rows are read after their slots."""

UNROLL = 2
"""Chunks, or pairs of them, per thread where this saves a second wave of threads."""

FEW_ITEMS = 4
"""Items of a chunk that is converted, where so few leave a multiprocessor one CTA at most."""


@dataclass(frozen=True, kw_only=True)
class Flash(Spec):
    """The compile-time constants of one specialisation of reshape_and_cache_flash.cu.

    Attributes:
        num_heads: KV heads of a token.
        head_size: Elements of a head of K.
        head_size_v: Elements of a head of V.
        block_size: Slots of a block.
        items: The items and their conversion.
        vec: Elements of a chunk.
        row_strides: Items from one row to the next, of key and of value.
        cache_strides: Items from one block, token and head to the next.
        slot_first: See `Options`.
        paired: See `Options`; None leaves it to `both`.
    """

    num_heads: int
    head_size: int
    head_size_v: int
    block_size: int
    items: Items
    vec: int
    row_strides: tuple[int, int]
    cache_strides: tuple[int, int, int]
    slot_first: bool = False
    paired: bool | None = None

    kernel = "reshape_and_cache_flash"
    num_addresses = 7

    @property
    def both(self) -> bool:
        """Say whether a thread moves a chunk of K and the same chunk of V, not one of either.

        When copying, the second access is free and halves the address arithmetic. Conversion to fp8 is
        arithmetic itself, which more threads finish sooner.
        """
        if self.paired is not None:
            return self.paired
        return self.items.copied and self.head_size == self.head_size_v

    def chunks(self, num_tokens: int) -> int:
        """Return the chunks, or pairs of chunks, of so many tokens."""
        planes = self.head_size if self.both else self.head_size + self.head_size_v
        return num_tokens * self.num_heads * planes // self.vec

    def threads(self, num_tokens: int) -> int:
        """See `Spec.threads`."""
        return -(-self.chunks(num_tokens) // self.unroll)

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """See `Spec.sizes`."""
        return (self.chunks(num_tokens),)

    @property
    def macros(self) -> Macros:
        """The constants as macros of the source."""
        key_stride, value_stride = self.row_strides
        block_stride, token_stride, head_stride = self.cache_strides
        return (
            *self.items.macros,
            ("NUM_HEADS", self.num_heads),
            ("HEAD_SIZE", self.head_size),
            ("HEAD_SIZE_V", self.head_size_v),
            ("BLOCK_SIZE", self.block_size),
            ("VEC", self.vec),
            ("KEY_STRIDE", f"{key_stride}ll"),
            ("VALUE_STRIDE", f"{value_stride}ll"),
            ("BLOCK_STRIDE", f"{block_stride}ll"),
            ("TOKEN_STRIDE", f"{token_stride}ll"),
            ("HEAD_STRIDE", f"{head_stride}ll"),
            ("BOTH", int(self.both)),
            ("SLOT_FIRST", int(self.slot_first)),
            ("UNROLL", self.unroll),
            ("WIDE_INDEX", int(self.wide_index)),
            ("THREADS", self.cta_threads),
        )

    def tuned(self, options: Options, num_tokens: int, sm_count: int) -> Self:
        """See `Spec.tuned`."""
        if options.paired and self.head_size != self.head_size_v:
            raise Unsupported(
                f"impl.paired=true needs heads of one size, not {self.head_size} and {self.head_size_v}"
            )
        if (options.chunk_items or 1) > self.vec:
            raise Unsupported(
                f"impl.chunk_items={options.chunk_items} is more than the {self.vec} items that heads, rows "
                "and their addresses allow"
            )
        spec = replace(self, paired=options.paired)
        spec = replace(spec, vec=options.chunk_items or spec.choose_vec(num_tokens, sm_count))
        spec = replace(spec, unroll=options.unroll or spec.choose_unroll(num_tokens, sm_count))
        slot_first = choose(options.slot_first, spec.waits_for_slots(num_tokens, sm_count))
        return replace(spec, slot_first=slot_first).with_ctas(options, num_tokens)

    def choose_vec(self, num_tokens: int, sm_count: int) -> int:
        """Return the items of a chunk: few where a call converts so little that most of the GPU idles.

        A thread that converts fewer items is done sooner. With more than a CTA on each multiprocessor, wide
        accesses are worth more.
        """
        few = replace(self, vec=min(self.vec, FEW_ITEMS))
        is_small = few.chunks(num_tokens) <= sm_count * THREADS
        return few.vec if not self.items.copied and is_small else self.vec

    def choose_unroll(self, num_tokens: int, sm_count: int) -> int:
        """Return the chunks, or pairs of chunks of K and V, that a thread moves: one or two.

        If they fill the GPU more than once and at most twice, two a thread all run at once, instead of in a
        second wave, in 15 % less time. With more waves the L2 is the bottleneck, and two pairs cost about
        2 %, while two single chunks are still up to 8 % faster. Where items are converted a thread takes two
        only if the second wave would be less than half full: one conversion then waits for the other.
        """
        waves = self.chunks(num_tokens) / (sm_count * SM_THREADS)
        most = 2.0 if self.both else 4.0
        return UNROLL if 1 < waves <= (most if self.items.copied else 1.5) else 1

    def waits_for_slots(self, num_tokens: int, sm_count: int) -> bool:
        """Return whether rows are read only after their slots, so that rows of padding are not read.

        Every other row then waits for two memory accesses in sequence. Where the GPU is filled many times and
        each thread has two rows in flight, other threads hide the latency: it costs about 0.5 % and saves
        most of the time for padding. With fewer threads it would cost up to 13 %, with one row a thread 10 %.
        """
        return self.both and self.threads(num_tokens) >= FILLED * sm_count * SM_THREADS


def fit(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, *others: Any, options: Options
) -> Fitted:
    """Return the specialisation for two caches of equal strides whose heads are contiguous."""
    slot_mapping, kv_cache_dtype, k_scale, _ = others
    _, num_heads, head_size = key.shape
    items = fit_items(key, kv_cache_dtype, k_scale, options.software_fp8)
    row_strides = (key.stride(0), value.stride(0))
    block_stride, token_stride, head_stride = cache_strides = get_strides(key_cache, 3)
    vec = choose_vector(
        VECTOR_BYTES // items.cache_bytes,
        math.gcd(head_size, value.shape[2]),
        measure_access(items.source_bytes, row_strides, key, value),
        measure_access(items.cache_bytes, cache_strides, key_cache, value_cache),
    )
    spec = Flash(
        num_heads=num_heads,
        head_size=head_size,
        head_size_v=value.shape[2],
        block_size=key_cache.shape[1],
        items=items,
        vec=vec,
        row_strides=row_strides,
        cache_strides=(block_stride, token_stride, head_stride),
    )
    return Fitted(spec, (key_cache.shape[0] * spec.block_size,), slot_mapping.shape[0])
