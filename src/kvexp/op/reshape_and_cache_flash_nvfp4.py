"""reshape_and_cache_flash_nvfp4: write K and V of each token as items of 4 bits to pages of one cache."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout, Plane, Planes
from kvexp.layout.flash import Flash
from kvexp.op import NVFP4, ValidCall
from kvexp.op.cache_write import CacheWrite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TILE = 16
"""Items that share a scale of one byte."""
LAYOUTS = ("NHD", "HND")
"""Layouts of a page: heads inside slots, or slots inside heads."""


def reshape_and_cache_flash_nvfp4(
    key: "Tensor",
    value: "Tensor",
    kv_cache: "Tensor",
    slot_mapping: "Tensor",
    k_scale: "Tensor",
    v_scale: "Tensor",
    layout: str,
    *,
    impl: str = "cuda",
    check_slots: bool = False,
) -> None:
    """Write each token's key and value as items of 4 bits, and a scale for each 16 of them, into its slot.

    A page holds K's items, K's scales, V's items, V's scales. Each of these is
    `[block_size, num_heads, width]` in `NHD` and `[num_heads, block_size, width]` in `HND`; the width is
    `head_size / 2` bytes of items, or `head_size / 16` of scales.

    Args:
        key: `[>= num_tokens, num_heads, head_size]`, float16 or bfloat16; rows may be any distance apart.
        value: The same.
        kv_cache: uint8 `[num_blocks, page_bytes]`, page_bytes `num_heads * head_size * 9 / 8` for each slot
            of a block; pages may be any distance apart; written.
        slot_mapping: int64 `[num_tokens]`; a negative slot, or one past the last, writes nothing.
        k_scale: float32 with one element, positive and finite; with another number no key is written on a
            GPU, and on a CPU the call is refused.
        v_scale: The same for values.
        layout: `NHD` or `HND`.
        impl: `cuda`, `triton` or `torch`.
        check_slots: Wait for the GPU and raise when a slot is past the last, or a scale not positive and
            finite.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is invalid, or the implementation cannot do the call.
    """


class Page(NamedTuple):
    """Say where the rows of heads lie in a page; an implementation derives it from the shapes of a call.

    Attributes:
        num_heads: KV heads of a token.
        block_size: Slots of a page.
        widths: Bytes of a head's items, and of its scales.
        layout: One of LAYOUTS.
    """

    num_heads: int
    block_size: int
    widths: tuple[int, int]
    layout: str

    @property
    def side_bytes(self) -> int:
        """Bytes of K in a page, and of V."""
        return self.num_heads * self.block_size * sum(self.widths)

    @property
    def scales_at(self) -> int:
        """Bytes of items before the scales of K, and of V."""
        return self.num_heads * self.block_size * self.widths[0]

    @property
    def strides(self) -> tuple[int, int]:
        """Rows of a head from one slot to the next, and from one head to the next."""
        return (self.num_heads, 1) if self.layout == "NHD" else (1, self.block_size)


def find_page(key: "Tensor", kv_cache: "Tensor", layout: str) -> Page:
    """Return the page of a call."""
    _, num_heads, head_size = key.shape
    widths = count_bytes(head_size)
    return Page(num_heads, kv_cache.shape[1] // (2 * num_heads * sum(widths)), widths, layout)


def count_bytes(head_size: int) -> tuple[int, int]:
    """Return the bytes of a head's items and of its scales."""
    return head_size // 2, head_size // TILE


class ReshapeAndCacheFlashNvfp4(CacheWrite):
    """`page[slot // block_size]` holds e2m1 codes of key and value at `slot % block_size`, and their scales.

    Items and scales lie in regions of their own. Semantics: docs/semantics.md.
    """

    name = "reshape_and_cache_flash_nvfp4"
    function = staticmethod(reshape_and_cache_flash_nvfp4)
    writes = ("kv_cache",)
    words = ("layout",)
    sources = ("half", "bfloat16")
    formats = (NVFP4,)
    parts = tuple(f"kv_cache ({part})" for part in ("key", "value", "scales of key", "scales of value"))
    made_of = ("key", "value", "key", "value")
    # The largest scale of a tile, 448, times the largest item, 6.
    largest_quotient = 448.0 * 6.0
    has_head_scales = False
    twins = MappingProxyType({"NHD_packed": "NHD", **dict.fromkeys(("HND_packed", "BHLNC", "LHBNC"), "HND")})

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        super().check(case, layout, item_bytes)
        if case.head_size % TILE:
            raise Unsupported(
                f"op={self.name} writes whole tiles of {TILE} items, so workload.head_size must be a "
                f"multiple of {TILE}, not {case.head_size}"
            )

    def check_layout(self, layout: Layout) -> None:
        """See `CacheWrite.check_layout`."""
        if layout.name not in LAYOUTS:
            raise Unsupported(
                f"op={self.name} writes pages of K and V in layout={' or '.join(LAYOUTS)}, "
                f"not layout={layout.name}"
            )

    def resolve_words(self, words: Mapping[str, Any]) -> dict[str, Any]:
        """See `CacheWrite.resolve_words`."""
        layout = words["layout"]
        if not isinstance(layout, str):
            raise TypeError(f"layout must be a str, not {type(layout).__name__}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
        return dict(words)

    def check_rows(self, num_tokens: int, *rows: "Tensor") -> None:
        """See `CacheWrite.check_rows`."""
        super().check_rows(num_tokens, *rows)
        head_size = rows[0].shape[2]
        if head_size % TILE:
            raise ValueError(f"key must have heads of a multiple of {TILE} elements, not {head_size}")

    def check_caches(self, kv_cache_dtype: str, rows: "Sequence[Tensor]", *caches: "Tensor") -> int:
        """See `CacheWrite.check_caches`."""
        from kvexp.op.arguments import check_own_memory, format_shape, has_strides  # imports torch

        (kv_cache,) = caches
        _, num_heads, head_size = rows[0].shape
        slot_bytes = 2 * num_heads * sum(count_bytes(head_size))
        if kv_cache.dim() != 2 or kv_cache.shape[1] % slot_bytes or not kv_cache.shape[1]:
            raise ValueError(
                f"kv_cache must be [num_blocks, page_bytes] with {slot_bytes} bytes for each slot of a "
                f"block, not {format_shape(kv_cache)}"
            )
        if not has_strides(kv_cache, (None, 1)):
            raise ValueError(f"kv_cache must have a contiguous last dim, not the strides {kv_cache.stride()}")
        check_own_memory("kv_cache", kv_cache)
        return kv_cache.shape[0] * (kv_cache.shape[1] // slot_bytes)

    def validate(self, arguments: Sequence[Any]) -> ValidCall:
        """See `op.Op.validate`; on a CPU the numbers of scales are at hand."""
        from torch import Tensor

        for name, scale in zip(self.parameters, arguments, strict=True):
            if name in self.scales and not isinstance(scale, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, not {type(scale).__name__}")
        call = super().validate(arguments)
        if call.device.type == "cpu":
            self._check_scales(call)
        return call

    def check_slots(self, call: ValidCall) -> None:
        """See `op.Op.check_slots`; scales are checked, too."""
        super().check_slots(call)
        self._check_scales(call)

    def _check_scales(self, call: ValidCall) -> None:
        for name, argument in zip(self.parameters, call.arguments, strict=True):
            if name in self.scales and not 0.0 < float(argument) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, not {float(argument)}")

    def list_planes(self, case: Case, layout: Layout, item_bytes: int) -> Planes:
        """See `CacheWrite.list_planes`; the op takes a page as one run of bytes."""
        assert isinstance(layout, Flash)
        items, scales = count_bytes(case.head_size)
        widths = (items, scales, items, scales)
        key, key_scales, value, value_scales = layout.split(case, widths, case.num_layers // 2)
        page_bytes = case.block_size * case.num_heads * sum(widths)
        page = Plane((case.num_blocks, page_bytes), (key.strides[0], 1), key.offset)
        return Planes(
            key=key,
            value=value,
            items=case.num_blocks * case.num_layers * page_bytes,
            packed=page,
            others=(key_scales, value_scales),
        )

    def expect(self, cache: str, rows: "Tensor", kv_cache_dtype: str, scale: "Tensor | None") -> "Tensor":
        """See `CacheWrite.expect`."""
        from kvexp.op.quantize_nvfp4 import quantize_nvfp4  # imports torch

        assert scale is not None
        return quantize_nvfp4(rows, scale)[self.parts.index(cache) // 2]

    def list_cache_types(self, source: "torch.dtype", kv_cache_dtype: str) -> tuple["torch.dtype", ...]:
        """See `CacheWrite.list_cache_types`."""
        import torch

        return (torch.uint8,)

    def count_tile_items(self, case: Case) -> int | None:
        """See `CacheWrite.count_tile_items`."""
        return TILE

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """See `op.Op.bytes_moved`."""
        read, _ = super().bytes_moved(case, item_bytes)
        return read, 2 * case.written_tokens * case.num_heads * sum(count_bytes(case.head_size))

    def list_arguments(self, tensors: Any, place: Any) -> tuple[Any, ...]:
        """See `op.Op.list_arguments`; the layout by its name."""
        rows = (tensors.key, tensors.value, tensors.kv_cache, place)
        return (*rows, tensors.k_scale, tensors.v_scale, tensors.layout.name)
