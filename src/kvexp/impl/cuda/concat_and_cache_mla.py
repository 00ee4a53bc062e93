"""concat_and_cache_mla: the kernel of reshape_and_cache_flash with one head, and that of fp8_ds_mla."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from kvexp.gpu.launch import Launch
from kvexp.impl.cuda import reshape_and_cache_flash
from kvexp.impl.cuda.items import Items, get_strides, measure_access
from kvexp.impl.cuda.launcher import Fitted, Macros, Spec
from kvexp.impl.cuda.options import Options
from kvexp.op import DS_MLA

WARP = 32


class Concat(reshape_and_cache_flash.Flash):
    """The specialisation for one cache of one head, kv_c and then k_pe, and one scale."""

    def adapt(self, launch_kernel: Launch) -> Launch:
        """See `Spec.adapt`."""
        k_pe_at = self.head_size * self.items.cache_bytes

        def launch(kv_c: int, k_pe: int, kv_cache: int, slots: int, scale: int) -> None:
            launch_kernel(kv_c, k_pe, kv_cache, kv_cache + k_pe_at, slots, scale, scale)

        return launch


@dataclass(frozen=True, kw_only=True)
class Tiles(Spec):
    """The compile-time constants of one specialisation of fp8_ds_mla.cu: a warp writes a row.

    Attributes:
        items: The items of kv_c and their conversion.
        has_rope: Whether there are rows of k_pe.
        block_size: Slots of a block.
        source_access: Bytes that divide every address of a row of kv_c and of k_pe, at most 16.
        cache_access: The same of a row of the cache.
        row_strides: Items from one row to the next, of kv_c and of k_pe.
        cache_strides: Bytes from one block and from one slot to the next.
    """

    items: Items
    has_rope: bool
    block_size: int
    source_access: int
    cache_access: int
    row_strides: tuple[int, int]
    cache_strides: tuple[int, int]

    kernel = "fp8_ds_mla"
    num_addresses = 4

    def threads(self, num_tokens: int) -> int:
        """See `Spec.threads`."""
        return -(-num_tokens // self.unroll) * WARP

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """See `Spec.sizes`."""
        return (num_tokens,)

    @property
    def macros(self) -> Macros:
        """The constants as macros of the source."""
        return (
            *self.items.macros,
            ("HAS_ROPE", int(self.has_rope)),
            ("BLOCK_SIZE", self.block_size),
            ("SOURCE_ACCESS", self.source_access),
            ("CACHE_ACCESS", self.cache_access),
            ("KV_C_STRIDE", f"{self.row_strides[0]}ll"),
            ("K_PE_STRIDE", f"{self.row_strides[1]}ll"),
            ("BLOCK_STRIDE", f"{self.cache_strides[0]}ll"),
            ("TOKEN_STRIDE", f"{self.cache_strides[1]}ll"),
            ("UNROLL", self.unroll),
            ("WIDE_INDEX", int(self.wide_index)),
            ("THREADS", self.cta_threads),
        )

    def tuned(self, options: Options, num_tokens: int, sm_count: int) -> Self:
        """See `Spec.tuned`."""
        return replace(self, unroll=options.unroll or 1).with_ctas(options, num_tokens)

    def adapt(self, launch_kernel: Launch) -> Launch:
        """See `Spec.adapt`; the scale is not read."""

        def launch(kv_c: int, k_pe: int, kv_cache: int, slots: int, scale: int) -> None:
            launch_kernel(kv_c, k_pe, kv_cache, slots)

        return launch


def fit(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    scale: Tensor | None,
    *,
    options: Options,
) -> Fitted:
    """Return the specialisation for these tensors."""
    if kv_cache_dtype == DS_MLA:
        return _fit_tiles(kv_c, k_pe, kv_cache, slot_mapping, options)
    width = kv_c.shape[1]
    caches = (half.unsqueeze(2) for half in (kv_cache[..., :width], kv_cache[..., width:]))
    rest = (slot_mapping, kv_cache_dtype, scale, scale)
    # The distance between rows without elements is arbitrary.
    value = k_pe.unsqueeze(1) if k_pe.shape[1] else k_pe.as_strided((len(k_pe), 1, 0), (0, 1, 1))
    rows = kv_c.unsqueeze(1), value
    flash = reshape_and_cache_flash.fit(*rows, *caches, *rest, options=options)
    return flash._replace(spec=Concat(**vars(flash.spec)))


def _fit_tiles(
    kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor, slot_mapping: Tensor, options: Options
) -> Fitted:
    source = str(kv_c.dtype).removeprefix("torch.")
    has_rope = k_pe.shape[1] > 0
    row_strides = (kv_c.stride(0), k_pe.stride(0) if has_rope else 0)
    block_stride, token_stride = cache_strides = get_strides(kv_cache, 2)
    num_blocks, block_size, _ = kv_cache.shape
    _, source_access = measure_access(kv_c.itemsize, row_strides, kv_c, k_pe)
    _, cache_access = measure_access(1, cache_strides, kv_cache)
    spec = Tiles(
        items=Items(source, "E4M3", software_fp8=options.software_fp8),
        has_rope=has_rope,
        block_size=block_size,
        source_access=source_access,
        cache_access=cache_access,
        row_strides=row_strides,
        cache_strides=(block_stride, token_stride),
    )
    return Fitted(spec, (num_blocks * block_size,), slot_mapping.shape[0])
