"""Describe the kernels' specialisations: frozen dataclasses of their compile-time constants.

A specialisation depends on the addresses only by their alignment, and on the number of tokens only by the
width of the flat index and by tuning, so that many calls share it.
"""

from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
"""The folder of the kernels."""

VECTOR_BYTES = 16
"""The widest access of one thread, and the chunk of a head-major key cache."""

SECTOR_BYTES = 32
"""The smallest unit of a memory write."""

THREADS = 128
"""Default threads of a CTA."""

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1}
FORMATS = {"auto": "COPIED", "fp8_e4m3": "E4M3", "fp8_e5m2": "E5M2"}
"""The kernels' name of the cache's items by `kv_cache_dtype`. An fp8 source is always COPIED."""

Macros = tuple[tuple[str, str | int], ...]


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


@dataclass(frozen=True)
class Options:
    """The kernels' options; None leaves the choice to `tuning`.

    Attributes:
        software_fp8: Convert to fp8 as GPUs before sm_89 must, on any GPU: the codes are the same.
        group_tokens: Tokens that neighbouring lanes of `reshape_and_cache` take, a power of two up to 32.
        cta_threads: Threads of a CTA, a multiple of 32 up to 1024.
        slot_first: Whether a row is read only after its slot: this saves the rows of padding, lets
            `reshape_and_cache` fill sectors wherever a run of slots begins, and makes every other row wait.
        paired: Whether a thread moves a chunk of K and the same chunk of V, not one of either; needs equal
            head sizes.
        unroll: Chunks that a thread of `reshape_and_cache_flash` moves, a power of two up to 8.
        exchange: Whether groups of tokens of `reshape_and_cache` are cut where spans of a block end, which
            fills sectors wherever a run of slots begins.
    """

    software_fp8: bool = False
    group_tokens: int | None = None
    cta_threads: int | None = None
    slot_first: bool | None = None
    paired: bool | None = None
    unroll: int | None = None
    exchange: bool | None = None


@dataclass(frozen=True)
class Flash:
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
        unroll: Chunks, or pairs of them, that a thread moves.
        cta_threads: Threads of a CTA.
        wide_index: Whether the flat index needs 64 bits.
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
    unroll: int = 1
    cta_threads: int = THREADS
    wide_index: bool = False

    kernel = "reshape_and_cache_flash"

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
        """Return the threads that a call for so many tokens needs."""
        return -(-self.chunks(num_tokens) // self.unroll)

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """Return the kernel's arguments between the addresses and the number of slots."""
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


@dataclass(frozen=True)
class HeadMajor:
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
        cta_threads: Threads of a CTA.
        wide_index: Whether the flat index needs 64 bits.
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
    cta_threads: int = THREADS
    wide_index: bool = False

    kernel = "reshape_and_cache"
    unroll = 1

    @property
    def both(self) -> bool:
        """Say whether a thread moves a chunk of K and the same chunk of V; see `Flash.both`."""
        return self.items.copied if self.paired is None else self.paired

    def group_shift(self, num_tokens: int) -> int:
        """Return log2 of the tokens of a group: as many as fill a sector with items of V, or fewer."""
        most = self.group_tokens or SECTOR_BYTES // self.items.cache_bytes
        return min(most, _round_up_to_power_of_two(num_tokens)).bit_length() - 1

    def threads(self, num_tokens: int) -> int:
        """Return the threads that a call for so many tokens needs; the last group counts as a whole one."""
        shift = self.group_shift(num_tokens)
        chunks = (1 if self.both else 2) * self.num_heads * self.head_size * self.items.cache_bytes
        return -(-num_tokens >> shift) * (chunks // VECTOR_BYTES) << shift

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """Return the kernel's arguments between the addresses and the number of slots."""
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


Spec = Flash | HeadMajor


def _round_up_to_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
