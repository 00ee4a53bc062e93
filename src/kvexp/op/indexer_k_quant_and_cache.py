"""indexer_k_quant_and_cache: write the key of a sparse attention's indexer as 8-bit floats with a scale."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kvexp.case import Case
from kvexp.errors import ConfigError, Unsupported
from kvexp.layout import Layout, Sizes, load_layouts
from kvexp.op.cache_write import CacheWrite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KEY_ITEMS, SCALE_BYTES = 128, 4
"""Items of a key, which are its codes' bytes too, and the bytes of its scale."""
SCALE_FORMATS = ("float32", "ue8m0")
"""What `scale_fmt` may be."""


def indexer_k_quant_and_cache(
    k: "Tensor",
    kv_cache: "Tensor",
    slot_mapping: "Tensor",
    quant_block_size: int,
    scale_fmt: str | None,
    *,
    impl: str = "cuda",
    check_slots: bool = False,
) -> None:
    """Write each token's key into its slot as 128 codes of fp8_e4m3 and a float32 scale.

    Args:
        k: float16 or bfloat16 `[>= num_tokens, 128]`; rows may be any distance apart.
        kv_cache: uint8 `[num_blocks, block_size, 132]`, blocks any distance apart, each contiguous: first the
            codes of all its slots, then their scales; written.
        slot_mapping: int64 `[num_tokens]`; a negative slot, or one past the last, writes nothing.
        quant_block_size: 128, the items that share a scale.
        scale_fmt: `float32` (which None and an empty text mean, too): the scale is `max(amax, 1e-4) / 448`;
            `ue8m0`: the smallest power of two that is not below.
        impl: `cuda`, `triton` or `torch`.
        check_slots: Wait for the GPU and raise when a slot is past the last.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is invalid, or the implementation cannot do the call.
    """


class IndexerKQuantAndCache(CacheWrite):
    """Of each block, codes of `k[token] / scale` at the slot's offset, and behind all codes the scale at it.

    Semantics: docs/semantics.md.

    Args:
        scale_fmt: What the pipeline's calls pass: `ue8m0` or `float32`.
    """

    name = "indexer_k_quant_and_cache"
    function = staticmethod(indexer_k_quant_and_cache)
    reads = ("k",)
    writes = ("kv_cache",)
    scales = ()
    words = ("quant_block_size", "scale_fmt")
    sources = ("half", "bfloat16")
    parts = ("kv_cache (codes)", "kv_cache (scale)")
    made_of = ("key", "key")
    formats = ("fp8_e4m3",)
    equal_heads = False
    may_lack_values = True
    sample_sizes = MappingProxyType({"num_heads": 1, "head_size": KEY_ITEMS, "head_size_v": 0})
    twins = MappingProxyType(dict.fromkeys(load_layouts(), "indexer"))

    def __init__(self, scale_fmt: str = "ue8m0") -> None:
        if scale_fmt not in SCALE_FORMATS:
            raise ConfigError(f"op.scale_fmt must be {' or '.join(SCALE_FORMATS)}, not {scale_fmt!r}")
        self.scale_fmt = scale_fmt

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        super().check(case, layout, item_bytes)
        sizes = {name: getattr(case, name) for name in self.sample_sizes}
        if sizes != dict(self.sample_sizes):
            taken, given = (
                ", ".join(f"workload.{name}={size}" for name, size in each.items())
                for each in (self.sample_sizes, sizes)
            )
            raise Unsupported(f"op={self.name} writes one key of {KEY_ITEMS}: {taken}, not {given}")
        if case.scale != "per_tensor":
            raise Unsupported(
                f"op={self.name} makes a scale for each key, so scale={case.scale} has no meaning"
            )

    def check_layout(self, layout: Layout) -> None:
        """See `CacheWrite.check_layout`."""
        if layout.shape != "indexer":
            raise Unsupported(
                f"op={self.name} writes blocks of codes, then scales, which layout={layout.name} does not "
                "have; try layout=indexer"
            )

    def resolve_words(self, words: Mapping[str, Any]) -> dict[str, Any]:
        """See `CacheWrite.resolve_words`."""
        size, scale_fmt = words["quant_block_size"], words["scale_fmt"]
        if not isinstance(size, int | float):
            raise TypeError(f"quant_block_size must be an int, not {type(size).__name__}")
        if size != KEY_ITEMS:
            raise ValueError(f"quant_block_size must be {KEY_ITEMS}, not {size}")
        if scale_fmt is not None and not isinstance(scale_fmt, str):
            raise TypeError(f"scale_fmt must be a str or None, not {type(scale_fmt).__name__}")
        resolved = scale_fmt or SCALE_FORMATS[0]
        if resolved not in SCALE_FORMATS:
            raise ValueError(f"scale_fmt must be one of {', '.join(SCALE_FORMATS)}, not {scale_fmt!r}")
        return {"quant_block_size": KEY_ITEMS, "scale_fmt": resolved}

    def list_cache_types(self, source: "torch.dtype", kv_cache_dtype: str) -> tuple["torch.dtype", ...]:
        """See `CacheWrite.list_cache_types`."""
        import torch

        return (torch.uint8,)

    def check_rows(self, num_tokens: int, *rows: "Tensor") -> None:
        """See `CacheWrite.check_rows`."""
        from kvexp.op.arguments import check_count, format_shape, has_strides  # imports torch

        (k,) = rows
        if k.dim() != 2 or k.shape[1] != KEY_ITEMS:
            raise ValueError(f"k must be [num_tokens, {KEY_ITEMS}], not {format_shape(k)}")
        check_count("k", k, num_tokens)
        if not has_strides(k, (None, 1)):
            raise ValueError(f"k must have a contiguous last dim, not the strides {k.stride()}")

    def check_caches(self, kv_cache_dtype: str, rows: "Sequence[Tensor]", *caches: "Tensor") -> int:
        """See `CacheWrite.check_caches`."""
        from kvexp.op.arguments import check_own_memory, format_shape, has_strides  # imports torch

        (kv_cache,) = caches
        width = KEY_ITEMS + SCALE_BYTES
        if kv_cache.dim() != 3 or kv_cache.shape[2] != width:
            raise ValueError(
                f"kv_cache must be [num_blocks, block_size, {width}], not {format_shape(kv_cache)}"
            )
        if not has_strides(kv_cache, (None, width, 1)):
            raise ValueError(f"kv_cache must have contiguous blocks, not the strides {kv_cache.stride()}")
        check_own_memory("kv_cache", kv_cache)
        return kv_cache.shape[0] * kv_cache.shape[1]

    def cache_sizes(self, case: Case) -> Sizes:
        """See `CacheWrite.cache_sizes`."""
        return replace(case, head_size=KEY_ITEMS, head_size_v=SCALE_BYTES)

    def expect(self, cache: str, rows: "Tensor", kv_cache_dtype: str, scale: "Tensor | None") -> "Tensor":
        """See `CacheWrite.expect`."""
        from kvexp.op.quantize import quantize_indexer_key  # imports torch

        return quantize_indexer_key(rows, self.scale_fmt)[self.parts.index(cache)]

    def count_tile_items(self, case: Case) -> int | None:
        """See `CacheWrite.count_tile_items`."""
        return KEY_ITEMS

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """See `op.Op.bytes_moved`."""
        read, _ = super().bytes_moved(case, item_bytes)
        return read, case.written_tokens * (KEY_ITEMS + SCALE_BYTES)

    def list_arguments(self, tensors: Any, place: Any) -> tuple[Any, ...]:
        """See `op.Op.list_arguments`; the one head's rows."""
        return (tensors.key[:, 0], tensors.kv_cache, place, KEY_ITEMS, self.scale_fmt)
