"""Write pages of 4-bit items and their scales by indexed assignment."""

import torch
from torch import Tensor

from kvexp.impl import do_nothing
from kvexp.impl.torch import Torch, find_destinations
from kvexp.op import Call
from kvexp.op.quantize_nvfp4 import quantize_nvfp4
from kvexp.op.reshape_and_cache_flash_nvfp4 import Page, find_page


def bind(
    impl: Torch,
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    layout: str,
) -> Call:
    """Bind the op to these tensors."""
    if not slot_mapping.shape[0] or not kv_cache.shape[0]:
        return do_nothing
    page = find_page(key, kv_cache, layout)
    write = impl.compiled(_write)

    def call() -> None:
        for begin, rows, scale in ((0, key, k_scale), (page.side_bytes, value, v_scale)):
            write(rows, kv_cache, begin, slot_mapping, scale, page)

    return call


def _write(
    rows: Tensor, kv_cache: Tensor, begin: int, slot_mapping: Tensor, scale: Tensor, page: Page
) -> None:
    """Write one side, which begins at that byte of a page; nothing with a scale that is not valid."""
    token, slot, any_valid = find_destinations(slot_mapping, len(kv_cache) * page.block_size)
    is_written = any_valid & (scale > 0) & scale.isfinite()
    block, offset = slot // page.block_size, slot % page.block_size
    rows_of_page = page.num_heads * page.block_size
    for width, data in zip(page.widths, quantize_nvfp4(rows[token], scale), strict=True):
        region = kv_cache[:, begin : begin + rows_of_page * width].unflatten(1, (-1, width))
        by_token, by_head = page.strides
        head = torch.arange(page.num_heads, device=slot.device) * by_head
        at = (block.unsqueeze(1), offset.unsqueeze(1) * by_token + head)
        region[at] = torch.where(is_written.view(-1, 1, 1), data, region[at])
        begin += rows_of_page * width
