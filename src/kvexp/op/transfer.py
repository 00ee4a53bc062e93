"""transfer: copy heads of blocks of a paged cache to the cache of another tensor-parallel rank."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout, Sizes, view_layers
from kvexp.layout.pieces import find_pieces
from kvexp.op import Op, check_planes, check_unused
from kvexp.op.cache_write import check_types

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kvexp.workload import Memory

PATTERNS = ("random", "contiguous")
"""Orders of blocks, of the words of `workload.slots`."""


def transfer(
    source: "Tensor", source_blocks: "Tensor", destination: "Tensor", destination_blocks: "Tensor"
) -> None:
    """Copy blocks of one cache to blocks of another: `destination[:, :, to] = source[:, :, from]`.

    Args:
        source: `[num_layers, planes, num_blocks, block_size, heads, width]`, the heads that are wanted. Where
            K and V of a head are adjacent there is one plane, and its width is that of both; else there are
            two. Blocks, slots, heads, planes and layers may be any distance apart.
        source_blocks: int64 `[n]`.
        destination: The same with its own number of blocks and its own distances; written.
        destination_blocks: int64 `[n]`, no block twice.
    """


@dataclass(frozen=True)
class Shard:
    """The heads that are copied.

    Attributes:
        heads: Their number.
        source_heads: Heads of the source's cache.
        source_head: The first that is copied.
        destination_heads: Heads of the destination's cache.
        destination_head: Where the first one goes.
    """

    heads: int
    source_heads: int
    source_head: int
    destination_heads: int
    destination_head: int


class Transfer(Op):
    """Copy whole blocks of a request, in all layers, between ranks of `tp_from` and of `tp_to` ranks.

    A rank of more ranks holds fewer heads. So it takes some of the source's heads; or, where it is one of
    fewer, the source's heads are some of its own. The heads from the middle on are taken, so that a head too
    many or the wrong one is seen.
    """

    name = "transfer"
    function = staticmethod(transfer)
    place = "destination_blocks"
    deed = "hand {num_tokens:,} tokens to a rank of another size (TP {tp_from} to {tp_to}, to={to})"
    role = "transfer"

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        check_planes(case, layout, "copies")
        check_types(self, case)
        if case.slots not in PATTERNS:
            raise Unsupported(
                f"op={self.name} takes whole blocks, {' or '.join(PATTERNS)}, not workload.slots={case.slots}"
            )
        check_unused(case, "reads no rows of tokens", padding=0.0, rows="contiguous", extra_tokens=0)
        find_shard(case)
        if case.to != "device" and case.device == "cpu":
            raise Unsupported(
                f"workload.to={case.to} needs a GPU, and this is device=cpu; workload.to=device copies "
                "inside its memory"
            )

    def list_devices(self, case: Case) -> list[str]:
        """See `op.Op.list_devices`: for `to=peer` two."""
        if case.to != "peer" or case.device == "cpu":
            return [case.device]
        from kvexp.gpu import far_memory  # imports torch

        return [case.device, far_memory.find_peer(case.device)]

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """Return the bytes of the blocks' rows and, to read, of their numbers."""
        items = self.count_blocks(case) * case.block_size * (case.head_size + case.head_size_v)
        moved = items * case.num_layers * find_shard(case).heads * case.cache_item_bytes(item_bytes)
        return moved + 8 * self.count_indices(case), moved

    def count_blocks(self, case: Case) -> int:
        """Return the blocks that hold so many tokens of one request."""
        return -(-case.num_tokens // case.block_size)

    def count_indices(self, case: Case) -> int:
        """See `op.Op.count_indices`: a number of the source and one of the destination for each block."""
        return 2 * self.count_blocks(case)

    def count_pieces(self, case: Case, layout: Layout, item_bytes: int) -> tuple[int, int]:
        """Return how many pieces are contiguous in both caches, and the bytes of each."""
        item_bytes, shard = case.cache_item_bytes(item_bytes), find_shard(case)
        source = view_layers(layout, self.source_sizes(case), item_bytes)
        destination = view_layers(layout, self.destination_sizes(case), item_bytes)
        layers, planes, _, slots, _, width = source.shape
        sizes = (layers, planes, 1, slots, shard.heads, width)
        found = find_pieces(sizes, source.strides, destination.strides, item_bytes)
        return self.count_blocks(case) * found.number, found.piece_bytes

    def count_places(self, case: Case) -> int:
        """Return how many such requests the destination's cache holds."""
        blocks = self.count_blocks(case)
        if blocks > case.num_blocks:
            raise Unsupported(
                f"num_tokens {case.num_tokens} takes {blocks} blocks of {case.block_size}, and the cache has "
                f"{case.num_blocks}"
            )
        if case.num_blocks < 2:
            raise Unsupported(f"op={self.name} needs 2 blocks, so that calls can take turns; the cache has 1")
        return case.num_blocks // blocks

    def allocate(
        self, largest: Case, layout: Layout, source: "torch.dtype", cold: Sequence[tuple[Case, int]] = ()
    ) -> AbstractContextManager["Memory"]:
        """See `op.Op.allocate`."""
        from kvexp.workload.transfer import allocate  # imports torch

        return allocate(self, largest, layout, source, find_shard(largest))

    def source_sizes(self, case: Case) -> Sizes:
        """Return the sizes of the cache that is read: the case's."""
        return case

    def destination_sizes(self, case: Case) -> Sizes:
        """Return the sizes of the cache that is written."""
        return replace(case, num_heads=find_shard(case).destination_heads)


def find_shard(case: Case) -> Shard:
    """Return the heads that a rank of `tp_to` takes from one of `tp_from`.

    Raises:
        Unsupported: The numbers of ranks, or of heads, do not divide.
    """
    few, many = sorted((case.tp_from, case.tp_to))
    if many % few:
        raise Unsupported(
            f"workload.tp_from={case.tp_from} and workload.tp_to={case.tp_to} share heads unevenly; one must "
            "divide the other"
        )
    ratio, heads = many // few, case.num_heads
    if case.tp_to < case.tp_from:
        return Shard(heads, heads, 0, ratio * heads, ratio // 2 * heads)
    if heads % ratio:
        raise Unsupported(
            f"{heads} heads of a rank cannot be split for {ratio} times as many ranks "
            f"(workload.tp_from={case.tp_from} workload.tp_to={case.tp_to})"
        )
    share = heads // ratio
    return Shard(share, heads, ratio // 2 * share, share, 0)
