"""Write an indexer's keys by indexed assignment: to the codes of a block, and to its scales."""

from torch import Tensor

from kvexp.impl import do_nothing
from kvexp.impl.torch import Torch, find_destinations
from kvexp.op import Call
from kvexp.op.quantize import quantize_indexer_key


def bind(
    impl: Torch, k: Tensor, kv_cache: Tensor, slot_mapping: Tensor, quant_block_size: int, scale_fmt: str
) -> Call:
    """Bind the op to these tensors."""
    num_blocks, block_size, _ = kv_cache.shape
    if not slot_mapping.shape[0] or not num_blocks * block_size:
        return do_nothing
    write = impl.compiled(_write)
    blocks = kv_cache.view(num_blocks, -1)  # each is one run of bytes

    def call() -> None:
        write(k, blocks, slot_mapping, block_size, quant_block_size, scale_fmt)

    return call


def _write(
    k: Tensor, blocks: Tensor, slot_mapping: Tensor, block_size: int, quant_block_size: int, scale_fmt: str
) -> None:
    token, slot, any_valid = find_destinations(slot_mapping, blocks.shape[0] * block_size)
    block, offset = slot // block_size, slot % block_size
    codes_end = block_size * quant_block_size
    regions = blocks[:, :codes_end], blocks[:, codes_end:]
    for region, written in zip(regions, quantize_indexer_key(k[token], scale_fmt), strict=True):
        cache = region.unflatten(1, (block_size, -1))
        cache[block, offset] = written.where(any_valid, cache[0, 0])
