"""flashinfer: FlashInfer's write and read of a paged cache, where it is installed; not a dependency."""

import weakref
from typing import Any

import torch
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl import do_nothing, import_peer
from kvexp.op import Call
from kvexp.op.reshape_and_cache_flash_nvfp4 import Page, find_page

NVFP4_APPEND = "nvfp4_quantize_append_paged_kv_cache_with_slot_mapping"
HEAD_SIZES = (64, 128, 256, 512)
ELEMENTS = 8
"""Elements per thread."""
MOST_THREADS = 1024
DECODE_HEAD_SIZES = (64, 128, 256)
WORKSPACE_BYTES = 128 << 20
"""Bytes for the partial results of a decode, as FlashInfer's documentation advises."""


class FlashInfer:
    """`flashinfer.append_paged_kv_cache` as a writer of slots, and its batch decode as a paged read.

    FlashInfer addresses positions in sequences of pages. One sequence whose pages are all blocks in order has
    position p in slot p, so the slots are the positions. The page table and the 32-bit positions are made
    outside the timed call, since an engine that uses positions has them already; so `refresh` must be called
    after the slots change. A decode is planned on the host for its lengths, in an engine once a step. That is
    not timed either; `refresh` plans anew. Its writer of nvfp4 reads slots as they are.
    """

    name = "flashinfer"
    untimed = ""

    def __init__(self, device: str) -> None:
        self._flashinfer: Any = import_peer(self.name, "flashinfer", ["flashinfer"])
        self._pages: dict[tuple[int, torch.device], Tensor] = {}
        self._calls: weakref.WeakSet[_Append] = weakref.WeakSet()
        self._plans: weakref.WeakValueDictionary[tuple[object, ...], _Plan] = weakref.WeakValueDictionary()
        self._workspace: Tensor | None = None

    def reshape_and_cache_flash(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> Call:
        """Bind `op.reshape_and_cache_flash` to these tensors."""
        num_tokens = slot_mapping.shape[0]
        num_blocks, block_size = key_cache.shape[:2]
        if not num_tokens:
            # FlashInfer's launch of no tokens is an error, which the next call of CUDA would report.
            return do_nothing
        _check(key, slot_mapping, num_blocks * block_size, kv_cache_dtype)
        kv_layout, caches = _name_layout(key_cache, value_cache)
        ints: Any = {"dtype": torch.int32, "device": key.device}
        positions = slot_mapping.int()
        arguments = (
            key[:num_tokens],
            value[:num_tokens],
            torch.zeros(num_tokens, **ints),
            positions,
            caches,
            self._get_pages(num_blocks, key.device),
            torch.tensor([0, num_blocks], **ints),
            torch.tensor([block_size], **ints),
        )
        append = self._flashinfer.append_paged_kv_cache
        call = _Append(append, arguments, kv_layout, slot_mapping, positions)
        self._calls.add(call)
        return call

    def reshape_and_cache_flash_nvfp4(
        self,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        k_scale: Tensor,
        v_scale: Tensor,
        layout: str,
    ) -> Call:
        """Bind `op.reshape_and_cache_flash_nvfp4` to these tensors, by the writer that reads slots."""
        write = getattr(self._flashinfer, NVFP4_APPEND, None)
        if write is None:
            raise Unsupported(f"impl=flashinfer writes nvfp4 by {NVFP4_APPEND}, which this version lacks")
        if not slot_mapping.shape[0]:
            return do_nothing
        codes, scales = _split_pages(find_page(key, kv_cache, layout), kv_cache)

        def call() -> None:
            write(key, value, slot_mapping, codes, scales, k_scale, v_scale, kv_layout=layout)

        return call

    def paged_decode(
        self,
        output: Tensor,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_table: Tensor,
        seq_lens: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ) -> Call:
        """Bind `op.paged_decode` to these tensors; calls of one table share a plan."""
        _check_decode(query, value_cache, kv_cache_dtype)
        kv_layout, caches = _name_layout(key_cache, value_cache)
        key = (block_table.data_ptr(), *block_table.shape, *query.shape, query.dtype, kv_layout)
        plan = self._plans.get(key)
        if plan is None:
            if self._workspace is None:
                self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=query.device)
            made = self._flashinfer.BatchDecodeWithPagedKVCacheWrapper
            plan = _Plan(made, self._workspace, kv_layout, query, key_cache, block_table, seq_lens)
            self._plans[key] = plan
        plan.update()
        run = plan.wrapper.run

        def call(_alive: _Plan = plan) -> None:
            run(query, caches, out=output)

        return call

    def refresh(self) -> None:
        """Update the positions of every bound write from its slots, and plan every bound read anew."""
        for call in self._calls:
            call.positions.copy_(call.slot_mapping)
        for plan in self._plans.values():
            plan.update()

    def _get_pages(self, num_blocks: int, device: torch.device) -> Tensor:
        """Return every block in order, int32 `[num_blocks]`; calls share the tensor."""
        pages = self._pages.get((num_blocks, device))
        if pages is None:
            pages = torch.arange(num_blocks, dtype=torch.int32, device=device)
            self._pages[num_blocks, device] = pages
        return pages


class _Append:
    """One bound call.

    Attributes:
        slot_mapping: The slots.
        positions: The slots as int32, which FlashInfer reads.
    """

    def __init__(
        self, append: Any, arguments: tuple[Any, ...], kv_layout: str, slot_mapping: Tensor, positions: Tensor
    ) -> None:
        self._append, self._arguments, self._kv_layout = append, arguments, kv_layout
        self.slot_mapping, self.positions = slot_mapping, positions

    def __call__(self) -> None:
        """Append keys and values to the paged cache."""
        self._append(*self._arguments, kv_layout=self._kv_layout)


class _Plan:
    """A decode's plan, whose buffers keep their addresses, so that a captured call follows it.

    Attributes:
        wrapper: FlashInfer's object that plans and runs.
    """

    def __init__(
        self,
        made: Any,
        workspace: Tensor,
        kv_layout: str,
        query: Tensor,
        key_cache: Tensor,
        block_table: Tensor,
        seq_lens: Tensor,
    ) -> None:
        self._tables, self._dtype = (block_table, seq_lens), query.dtype
        _, self._block_size, num_heads, head_size = key_cache.shape
        self._sizes = (query.shape[1], num_heads, head_size, self._block_size)
        count, device = len(seq_lens), query.device
        sizes = count + 1, block_table.numel(), count
        buffers = [torch.zeros(size, dtype=torch.int32, device=device) for size in sizes]
        self.wrapper = made(workspace, kv_layout, True, True, *buffers)

    def update(self) -> None:
        """Plan for the lengths and the blocks of this moment."""
        block_table, seq_lens = self._tables
        blocks = -(-seq_lens // self._block_size)
        begins = torch.nn.functional.pad(blocks.cumsum(0), (1, 0)).int()
        used = torch.arange(block_table.shape[1], device=blocks.device) < blocks.unsqueeze(1)
        last = seq_lens - (blocks - 1) * self._block_size
        kinds = {"q_data_type": self._dtype, "kv_data_type": self._dtype}
        self.wrapper.plan(begins.cpu(), block_table[used], last.int().cpu(), *self._sizes, **kinds)


def _name_layout(key_cache: Tensor, value_cache: Tensor) -> tuple[str, tuple[Tensor, Tensor]]:
    """Return FlashInfer's name of the layout, and the caches with their dims in that order."""
    heads_inside = key_cache.stride(1) >= key_cache.stride(2)
    order = (0, 1, 2, 3) if heads_inside else (0, 2, 1, 3)
    return "NHD" if heads_inside else "HND", (key_cache.permute(order), value_cache.permute(order))


def _split_pages(page: Page, kv_cache: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the codes of K and of V, and their scales as e4m3, with the dims of the layout."""
    heads_inside = page.layout == "NHD"
    shape = (page.block_size, page.num_heads) if heads_inside else (page.num_heads, page.block_size)
    rows = page.num_heads * page.block_size
    begins = (0, page.scales_at, page.side_bytes, page.side_bytes + page.scales_at)
    key_codes, key_scales, value_codes, value_scales = (
        kv_cache[:, begin : begin + rows * width].unflatten(1, (*shape, width))
        for begin, width in zip(begins, page.widths * 2, strict=True)
    )
    kind = torch.float8_e4m3fn
    return (key_codes, value_codes), (key_scales.view(kind), value_scales.view(kind))


def _check_decode(query: Tensor, value_cache: Tensor, kv_cache_dtype: str) -> None:
    """Check that FlashInfer takes such a read.

    Raises:
        Unsupported: It does not.
    """
    head_size, head_size_v = query.shape[-1], value_cache.shape[-1]
    if kv_cache_dtype != "auto" or query.itemsize != 2:
        raise Unsupported(
            f"impl=flashinfer reads half or bfloat16 as the queries are, not {query.dtype} with "
            f"kv_cache_dtype={kv_cache_dtype}"
        )
    if head_size not in DECODE_HEAD_SIZES or head_size_v != head_size:
        sizes = ", ".join(map(str, DECODE_HEAD_SIZES))
        raise Unsupported(f"impl=flashinfer reads heads of {sizes}, not of {head_size} and {head_size_v}")


def _check(key: Tensor, slot_mapping: Tensor, num_slots: int, kv_cache_dtype: str) -> None:
    """Check that FlashInfer takes such a call.

    Raises:
        Unsupported: It does not.
    """
    _, num_heads, head_size = key.shape
    if kv_cache_dtype != "auto":
        raise Unsupported(f"impl=flashinfer copies and has no kv_cache_dtype={kv_cache_dtype}")
    if head_size not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        raise Unsupported(f"impl=flashinfer takes the head sizes {sizes}, not {head_size}")
    threads = head_size // ELEMENTS * num_heads
    if threads > MOST_THREADS:
        raise Unsupported(
            f"impl=flashinfer gives a token {threads} threads for {num_heads} heads x {head_size}, "
            f"more than the {MOST_THREADS} that a block may have"
        )
    if int(slot_mapping.min()) < 0:
        raise Unsupported("impl=flashinfer has no padding slots")
    if int(slot_mapping.max()) >= num_slots:
        raise Unsupported("impl=flashinfer has no slots past the last")
