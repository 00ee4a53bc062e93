"""flashinfer: FlashInfer's append_paged_kv_cache, where it is installed; a peer, not a dependency."""

import weakref
from typing import Any

import torch
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.op import Call

HEAD_SIZES = (64, 128, 256, 512)
ELEMENTS = 8
"""Elements per thread."""
MOST_THREADS = 1024


class FlashInfer:
    """`flashinfer.append_paged_kv_cache` as a writer of slots.

    FlashInfer addresses positions in sequences of pages. One sequence whose pages are all blocks in order has
    position p in slot p, so the slots are the positions. The page table and the 32-bit positions are made
    outside the timed call, since an engine that uses positions has them already; so `refresh` must be called
    after the slots change.
    """

    name = "flashinfer"
    untimed = ""

    def __init__(self, device: str) -> None:
        try:
            import flashinfer
        except ImportError as error:
            raise Unsupported(
                f"impl=flashinfer needs the package flashinfer, which cannot be imported: {error}"
            ) from error
        self.append: Any = flashinfer.append_paged_kv_cache
        self._pages: dict[tuple[int, torch.device], Tensor] = {}
        self._calls: weakref.WeakSet[_Append] = weakref.WeakSet()

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
        _check(key, slot_mapping, num_blocks * block_size, kv_cache_dtype)
        heads_inside = key_cache.stride(1) >= key_cache.stride(2)
        order = (0, 1, 2, 3) if heads_inside else (0, 2, 1, 3)
        ints: Any = {"dtype": torch.int32, "device": key.device}
        positions = slot_mapping.int()
        arguments = (
            key[:num_tokens],
            value[:num_tokens],
            torch.zeros(num_tokens, **ints),
            positions,
            (key_cache.permute(order), value_cache.permute(order)),
            self._get_pages(num_blocks, key.device),
            torch.tensor([0, num_blocks], **ints),
            torch.tensor([block_size], **ints),
        )
        call = _Append(self.append, arguments, "NHD" if heads_inside else "HND", slot_mapping, positions)
        self._calls.add(call)
        return call

    def refresh(self) -> None:
        """Update the positions of every bound call from its slots."""
        for call in self._calls:
            call.positions.copy_(call.slot_mapping)

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
    if not slot_mapping.shape[0]:
        return
    if int(slot_mapping.min()) < 0:
        raise Unsupported("impl=flashinfer has no padding slots")
    if int(slot_mapping.max()) >= num_slots:
        raise Unsupported("impl=flashinfer has no slots past the last")
