"""concat_and_cache_mla: write kv_c and k_pe of each token side by side to the cache of latent attention."""

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout, Sizes, load_layouts
from kvexp.op import DS_MLA, FP8
from kvexp.op.cache_write import CacheWrite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LATENT, ROPE = 512, 64
"""Items of kv_c, and of k_pe where there is one, in a row of fp8_ds_mla."""
CODES_AND_SCALES, ROPE_BYTES = 528, 128
"""Bytes of a row of fp8_ds_mla: 512 codes and four float32 scales, then 64 items of two bytes."""
SOURCES = ("half", "bfloat16")
"""Types of the rows that fp8_ds_mla takes."""


def concat_and_cache_mla(
    kv_c: "Tensor",
    k_pe: "Tensor",
    kv_cache: "Tensor",
    slot_mapping: "Tensor",
    kv_cache_dtype: str,
    scale: "Tensor | None" = None,
    *,
    impl: str = "cuda",
    check_slots: bool = False,
) -> None:
    """Write each token's latent and rotary key into its slot of one cache without heads.

    Args:
        kv_c: `[>= num_tokens, R]`; rows may be any distance apart.
        k_pe: `[>= num_tokens, P]`; P may be 0.
        kv_cache: `[num_blocks, block_size, R + P]`, for `fp8_ds_mla` uint8 `[num_blocks, block_size, 656]`;
            the last dim contiguous; written.
        slot_mapping: int64 `[num_tokens]`; a negative slot, or one past the last, writes nothing.
        kv_cache_dtype: `auto`, `fp8` (which is `fp8_e4m3`), `fp8_e4m3`, `fp8_e5m2`, or `fp8_ds_mla`, which
            takes half or bfloat16 with R 512 and P 64 or 0.
        scale: float32 with one element; fp8 stores `kv_c / scale` and `k_pe / scale`. Not read for `auto` and
            `fp8_ds_mla`.
        impl: `cuda`, `triton` or `torch`.
        check_slots: Wait for the GPU and raise when a slot is past the last.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is invalid, or the implementation cannot do the call.
    """


class ConcatAndCacheMla(CacheWrite):
    """`kv_cache[slot // block_size, slot % block_size] = concatenated(kv_c[token], k_pe[token])`.

    It is diffkv with one head and one scale: kv_c are its keys, k_pe its values. A row of `fp8_ds_mla` has
    scales of its own. Semantics: docs/semantics.md.
    """

    name = "concat_and_cache_mla"
    function = staticmethod(concat_and_cache_mla)
    reads = ("kv_c", "k_pe")
    writes = ("kv_cache",)
    scales = ("scale",)
    parts = ("kv_cache (kv_c)", "kv_cache (k_pe)")
    formats = ("auto", *FP8, DS_MLA)
    equal_heads = False
    may_lack_values = True
    sample_sizes = MappingProxyType({"num_heads": 1, "head_size": LATENT, "head_size_v": ROPE})
    twins = MappingProxyType(dict.fromkeys(load_layouts(), "mla"))

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        super().check(case, layout, item_bytes)
        if case.num_heads != 1:
            raise Unsupported(
                f"op={self.name} writes rows without heads, so workload.num_heads must be 1, "
                f"not {case.num_heads}"
            )
        if case.scale != "per_tensor":
            raise Unsupported(f"op={self.name} has one scale for kv_c and k_pe, not scale={case.scale}")
        if case.kv_cache_dtype != DS_MLA:
            return
        if case.dtype not in SOURCES:
            raise Unsupported(f"kv_cache_dtype={DS_MLA} takes {' or '.join(SOURCES)}, not dtype={case.dtype}")
        if (case.head_size, case.head_size_v) not in ((LATENT, ROPE), (LATENT, 0)):
            raise Unsupported(
                f"kv_cache_dtype={DS_MLA} takes workload.head_size={LATENT} and "
                f"workload.head_size_v={ROPE} or 0, not {case.head_size} and {case.head_size_v}"
            )

    def check_layout(self, layout: Layout) -> None:
        """See `CacheWrite.check_layout`."""
        if layout.shape != "mla":
            raise Unsupported(
                f"op={self.name} writes a cache of [num_blocks, block_size, head_size + head_size_v], "
                f"which layout={layout.name} is not; try layout=mla"
            )

    def check_rows(self, num_tokens: int, *rows: "Tensor") -> None:
        """See `CacheWrite.check_rows`."""
        from kvexp.op.arguments import check_count, format_shape, has_strides  # imports torch

        for name, width, own in zip(self.reads, ("R", "P"), rows, strict=True):
            if own.dim() != 2:
                raise ValueError(f"{name} must be [num_tokens, {width}], not {format_shape(own)}")
            check_count(name, own, num_tokens)
            if not has_strides(own, (None, 1)):
                raise ValueError(f"{name} must have a contiguous last dim, not the strides {own.stride()}")
        if not rows[0].shape[1]:
            raise ValueError(f"kv_c must have elements, not {format_shape(rows[0])}")

    def check_caches(self, kv_cache_dtype: str, rows: "Sequence[Tensor]", *caches: "Tensor") -> int:
        """See `CacheWrite.check_caches`."""
        from kvexp.op.arguments import (  # imports torch
            check_own_memory,
            format_dtype,
            format_shape,
            has_strides,
        )

        (key, value), (kv_cache,) = rows, caches
        width, words = key.shape[1] + value.shape[1], "R + P"
        if kv_cache_dtype == DS_MLA:
            sizes = (key.shape[1], value.shape[1])
            if sizes not in ((LATENT, ROPE), (LATENT, 0)):
                raise ValueError(
                    f"kv_cache_dtype={DS_MLA} takes kv_c of {LATENT} and k_pe of {ROPE} or 0 elements, "
                    f"not {sizes[0]} and {sizes[1]}"
                )
            if key.itemsize != 2:
                raise TypeError(
                    f"kv_c must be float16 or bfloat16 for kv_cache_dtype={DS_MLA}, "
                    f"not {format_dtype(key.dtype)}"
                )
            width, words = CODES_AND_SCALES + ROPE_BYTES, "bytes"
        if kv_cache.dim() != 3 or kv_cache.shape[2] != width:
            raise ValueError(
                f"kv_cache must be [num_blocks, block_size, {width}] ({words}), not {format_shape(kv_cache)}"
            )
        if not has_strides(kv_cache, (None, None, 1)):
            raise ValueError(f"kv_cache must have a contiguous last dim, not the strides {kv_cache.stride()}")
        check_own_memory("kv_cache", kv_cache)
        return kv_cache.shape[0] * kv_cache.shape[1]

    def cache_sizes(self, case: Case) -> Sizes:
        """See `CacheWrite.cache_sizes`."""
        if case.kv_cache_dtype != DS_MLA:
            return case
        return replace(case, head_size=CODES_AND_SCALES, head_size_v=ROPE_BYTES)

    def expect(self, cache: str, rows: "Tensor", kv_cache_dtype: str, scale: "Tensor | None") -> "Tensor":
        """See `CacheWrite.expect`; the part of k_pe is zeros where there is none."""
        if kv_cache_dtype != DS_MLA:
            return super().expect(cache, rows, kv_cache_dtype, scale)
        import torch

        from kvexp.op.quantize import quantize_tiles

        if cache == self.parts[0]:
            return quantize_tiles(rows)
        empty = rows.new_zeros((*rows.shape[:2], ROPE_BYTES), dtype=torch.uint8)
        return rows.contiguous().view(torch.uint8) if rows.numel() else empty

    def reads_scales(self, source: "torch.dtype", kv_cache_dtype: str) -> bool:
        """See `CacheWrite.reads_scales`."""
        return kv_cache_dtype != DS_MLA and super().reads_scales(source, kv_cache_dtype)

    def count_tile_items(self, case: Case) -> int | None:
        """See `CacheWrite.count_tile_items`."""
        from kvexp.op.quantize import TILE  # imports torch

        return TILE if case.kv_cache_dtype == DS_MLA else None

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """See `op.Op.bytes_moved`."""
        read, written = super().bytes_moved(case, item_bytes)
        if case.kv_cache_dtype == DS_MLA:
            written = case.written_tokens * (CODES_AND_SCALES + ROPE_BYTES)
        return read, written

    def list_arguments(self, tensors: Any, place: Any) -> tuple[Any, ...]:
        """See `op.Op.list_arguments`; the one head's rows."""
        rows = tensors.key[:, 0], tensors.value[:, 0]
        return (*rows, tensors.kv_cache, place, tensors.kv_cache_dtype, tensors.k_scale)
