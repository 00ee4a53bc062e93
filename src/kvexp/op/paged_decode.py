"""paged_decode: attention of one new token of each sequence over its past in a paged cache."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from kvexp.case import SLOTS, Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout
from kvexp.op import FP8, Op, check_planes, check_unused
from kvexp.op.cache_write import check_types

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kvexp.workload import Memory


def paged_decode(
    output: "Tensor",
    query: "Tensor",
    key_cache: "Tensor",
    value_cache: "Tensor",
    block_table: "Tensor",
    seq_lens: "Tensor",
    kv_cache_dtype: str,
    k_scale: "Tensor",
    v_scale: "Tensor",
) -> None:
    """Write `softmax(q k^T / sqrt(head_size)) v` of each sequence and query head.

    Args:
        output: `[num_seqs, num_query_heads, head_size_v]`, contiguous; written.
        query: `[num_seqs, num_query_heads, head_size]`, contiguous, of the output's type.
        key_cache: `[num_blocks, block_size, num_heads, head_size]`, the last dim contiguous; query head `h`
            reads KV head `h // (num_query_heads / num_heads)`.
        value_cache: The same with heads of `head_size_v`.
        block_table: int32 `[num_seqs, most blocks of a sequence]`.
        seq_lens: int32 `[num_seqs]`; what lies behind a sequence's last token is not read.
        kv_cache_dtype: `auto`, or `fp8_e4m3` or `fp8_e5m2`, whose codes are times the scale.
        k_scale: float32 with one element or `[num_heads]`. Not read for `auto`.
        v_scale: The same for values.
    """


class PagedDecode(Op):
    """Read the past of `num_tokens` sequences of `context` tokens each.

    Attributes:
        places: Outputs that calls write in turns; few, since they are few bytes beside what is read.
    """

    name = "paged_decode"
    function = staticmethod(paged_decode)
    place = "output"
    deed = "read a step: {num_tokens:,} sequences of {context:,} tokens"
    role = "read"
    places = 16

    def check(self, case: Case, layout: Layout, item_bytes: int) -> None:
        """See `op.Op.check`."""
        check_planes(case, layout, "reads")
        check_types(self, case)
        if case.dtype in FP8:
            raise Unsupported(f"op={self.name} computes in half, bfloat16 or float, not dtype={case.dtype}")
        if case.slots not in SLOTS:
            raise Unsupported(
                f"op={self.name} writes no slots, so workload.batch and files of slots have no meaning there"
            )
        check_unused(case, "reads no rows of tokens", padding=0.0, rows="contiguous", extra_tokens=0)
        if case.num_query_heads % case.num_heads:
            raise Unsupported(
                f"workload.num_query_heads={case.num_query_heads} must be a multiple of "
                f"workload.num_heads={case.num_heads}"
            )

    def bytes_moved(self, case: Case, item_bytes: int) -> tuple[int, int]:
        """Return the bytes of the past, the queries and the tables, and those of the outputs."""
        rows = case.num_tokens * case.context * case.num_heads * (case.head_size + case.head_size_v)
        heads = case.num_tokens * case.num_query_heads * item_bytes
        read = rows * case.cache_item_bytes(item_bytes) + heads * case.head_size
        return read + 8 * self.count_indices(case), heads * case.head_size_v

    def count_blocks(self, case: Case) -> int:
        """Return the blocks of one sequence's past."""
        return -(-case.context // case.block_size)

    def count_indices(self, case: Case) -> int:
        """See `op.Op.count_indices`: two numbers of 4 bytes are one index, so that halves are rounded up."""
        return -(-case.num_tokens * (self.count_blocks(case) + 1) // 2)

    def count_places(self, case: Case) -> int:
        """Return the number of outputs; check that the cache holds the sequences."""
        blocks = case.num_tokens * self.count_blocks(case)
        if blocks > case.num_blocks:
            raise Unsupported(
                f"{case.num_tokens} sequences of {case.context} tokens take {blocks} blocks of "
                f"{case.block_size}, and the cache has {case.num_blocks}; take more workload.num_blocks or a "
                "shorter workload.context"
            )
        return self.places

    def allocate(
        self, largest: Case, layout: Layout, source: "torch.dtype", cold: Sequence[tuple[Case, int]] = ()
    ) -> AbstractContextManager["Memory"]:
        """See `op.Op.allocate`."""
        from kvexp.op.quantize import SOURCES  # imports torch
        from kvexp.workload.paged_decode import allocate

        item = source if largest.kv_cache_dtype == "auto" else SOURCES[largest.kv_cache_dtype]
        windows = max((count for _, count in cold), default=2)
        return allocate(self, largest, layout, source, item, windows)
