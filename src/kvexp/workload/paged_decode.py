"""Build the tensors of a paged decode: a cache of sequences' pasts, their queries, and the outputs.

Places are outputs, windows are queries and, where they share nothing, other pasts. Whatever no sequence of a
point reads is NaN, so that a wrong block or a token too many shows.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.gpu.scan import checksums
from kvexp.layout import Layout, Plane
from kvexp.layout.flash import NHD
from kvexp.workload import APART, BOUND, GUARD_BYTES, INTEGERS, Part, attention_law, device_memory
from kvexp.workload import slots as patterns
from kvexp.workload.attention_law import Law

if TYPE_CHECKING:
    from kvexp.op.paged_decode import PagedDecode

OUTPUTS = NHD()
"""Outputs are planes of blocks, one for each place, whose slots are the sequences."""

LEAST_GPU_OUTPUTS = 32 << 20
"""Bytes of outputs on a GPU, where an equal copy writes more than the op, so that it fills the GPU."""
KEY_OFFSET = 8.0
"""First element of each key."""
PEAK = 200.0
"""About what the products of the last query head of 16-bit items have in common, by the first element: as
exponents they overflow unless their maximum is subtracted. An fp8 cache's scale may halve it. In float32 the
order of the sums would matter more than anything else."""

PASTS_BYTES = 256 << 20
"""Bytes of pasts, in float64, that are attended at once."""

MEAN_SCALE = 1 / 16
"""Of scales, which differ by up to a half from it; codes are numbers over it, all finite."""


@dataclass(frozen=True)
class Tensors:
    """The tensors of one point; see `workload.Tensors` and `op.paged_decode`.

    Attributes:
        case: The point.
        memory: The curve's memory.
        outputs: `[places, num_seqs, num_query_heads, head_size_v]`.
        tables: int32 `[windows, num_seqs, blocks of a sequence]`; hot windows are views of one.
        seq_lens: int32 `[num_seqs]`.
        first_queries: For each window, which of the memory's queries is its first.
        index: The window.
        laws: The law of each window, once it was asked for.
        sums: Checksums of everything that calls read when it was last set.
    """

    inputs = "queries, cache, block tables, lengths or scales"

    case: Case
    memory: "Memory"
    outputs: Tensor
    tables: Tensor
    seq_lens: Tensor
    first_queries: tuple[int, ...]
    index: int = 0
    laws: dict[int, Law] = field(default_factory=dict)
    sums: list[int] = field(default_factory=list)

    @property
    def places(self) -> Tensor:
        """The outputs."""
        return self.outputs

    @property
    def query(self) -> Tensor:
        """The window's queries."""
        first = self.first_queries[self.index]
        return self.memory.queries[first : first + self.case.num_tokens]

    @property
    def block_table(self) -> Tensor:
        """The window's blocks."""
        return self.tables[self.index]

    @property
    def key_cache(self) -> Tensor:
        """K's plane."""
        return self.memory.planes[0]

    @property
    def value_cache(self) -> Tensor:
        """V's plane."""
        return self.memory.planes[1]

    @property
    def kv_cache_dtype(self) -> str:
        """`auto` or the fp8 format."""
        return self.case.kv_cache_dtype

    @property
    def k_scale(self) -> Tensor:
        """float32, one element without dims or `[num_heads]`."""
        return self._scale(0)

    @property
    def v_scale(self) -> Tensor:
        """The same for the values."""
        return self._scale(1)

    def _scale(self, plane: int) -> Tensor:
        scale = self.memory.scales[plane]
        return scale[0] if self.case.scale == "per_tensor" else scale

    def window(self, index: int) -> "Tensors":
        """Return these tensors with another window's queries and blocks."""
        return replace(self, index=index)

    def list_parts(self) -> Sequence[Part]:
        """List the outputs, the only part."""
        if self.index not in self.laws:
            self.laws[self.index] = self._compute_law()
        law = self.laws[self.index]

        def find_wrong(found: Tensor, expected: Tensor) -> Tensor:
            # A NaN is not near anything.
            return ~((found.double() - expected).abs() <= law.bound)

        row_bytes = law.outputs[0].numel() * 8
        return [Part("output", self.outputs, OUTPUTS, lambda rows: law.outputs[rows], row_bytes, find_wrong)]

    def _compute_law(self) -> Law:
        case, tables = self.case, self.block_table
        token = torch.arange(case.context, device=tables.device)
        past_bytes = case.context * case.num_heads * (case.head_size + case.head_size_v) * 8
        at_once = max(1, PASTS_BYTES // past_bytes)
        slots = (
            blocks.long()[:, token // case.block_size] * case.block_size + token % case.block_size
            for blocks in tables.split(at_once)
        )
        pasts = ((self.memory.read(0, some), self.memory.read(1, some)) for some in slots)
        return attention_law.compute(self.query.split(at_once), pasts, case.seed)

    def number(self, written: int) -> int:
        """Return the sequence."""
        return written

    def written_slots(self, mappings: int) -> Tensor:
        """Return the outputs of the first mappings, int64 `[mappings, num_seqs]`."""
        count = self.case.num_tokens
        return torch.arange(mappings * count, device=self.seq_lens.device).view(mappings, count)

    def redraw(self, draw: int) -> None:
        """Change queries, cache, tables and scales in place."""
        self.memory.draw(self.case, draw)
        self.fill_pasts(draw)

    def fill_pasts(self, draw: int) -> None:
        """Set the tables from the memory's order, write a past for each, and NaN elsewhere."""
        self.laws.clear()
        tables = self.tables if self.tables.stride(0) else self.tables[:1]
        order = self.memory.slots[: tables[:, :, 0].numel() * tables.shape[2]]
        tables.data.copy_(order.view(tables.shape))
        self.memory.fill_pasts(self.case, tables.data.view(-1, tables.shape[2]), draw)
        self.sums[:] = self._sums()

    def unchanged(self, others: bool = False) -> bool:
        """Return whether what calls read is as it was when last set; there is no other input."""
        return self.sums == self._sums()

    def _sums(self) -> list[int]:
        tables = self.tables if self.tables.stride(0) else self.tables[0]
        held = self.memory
        return checksums([held.inputs, held.queries, held.scales, held.slots, tables, self.seq_lens])


@dataclass(frozen=True)
class Memory:
    """The memory of a curve; see `workload.Memory`.

    Attributes:
        op: The op.
        largest: The case with the curve's largest `num_tokens`.
        layout: The cache's.
        item: Type of the numbers in the cache: the queries', or torch's 8-bit float.
        inputs: uint8: the cache.
        planes: K's and V's plane of its middle layer.
        queries: `[num_queries, num_query_heads, head_size]`.
        scales: float32 `[2, num_heads]`, or one column per tensor.
        slots: int64 `[num_blocks]`: the blocks in the order in which sequences take them.
        storage: uint8: the outputs and their guards.
        sums: Checksums of everything that calls read when it was last set.
    """

    far = False

    op: "PagedDecode"
    largest: Case
    layout: Layout
    item: torch.dtype
    inputs: Tensor
    planes: tuple[Tensor, Tensor]
    queries: Tensor
    scales: Tensor
    slots: Tensor
    storage: Tensor
    sums: list[int] = field(default_factory=list)

    def fill(self) -> None:
        """Draw queries, scales and the order, as calls are bound with; fill the cache with NaN."""
        self.draw(self.largest, BOUND)
        self.inputs.data.view(self.item).fill_(math.nan)
        self.sums[:] = self._sums()

    def draw(self, case: Case, draw: int) -> None:
        """Draw queries, scales and the order of the blocks anew, in place."""
        device = self.slots.device
        generator = torch.Generator(device).manual_seed(case.seed + draw * APART)
        blocks = replace(case, block_size=1)
        self.slots.data.copy_(patterns.order(blocks, device, generator, rotated=True))
        self.queries.data.normal_(generator=generator)
        if self.queries.itemsize == 2:
            self.queries.data[:, -1, 0] = PEAK * math.sqrt(case.head_size) / KEY_OFFSET
        self.scales.data.uniform_(MEAN_SCALE / 2, 1.5 * MEAN_SCALE, generator=generator)

    def fill_pasts(self, case: Case, tables: Tensor, draw: int) -> None:
        """Write keys and values to the blocks of each sequence, and NaN to everything else."""
        generator = torch.Generator(self.slots.device).manual_seed(case.seed + 1 + draw * APART)
        self.inputs.data.view(self.item).fill_(math.nan)
        token = torch.arange(case.context, device=self.slots.device)
        for blocks in tables:
            slots = blocks.long()[token // case.block_size] * case.block_size + token % case.block_size
            for plane, size in zip(self.planes, (case.head_size, case.head_size_v), strict=True):
                shape = (case.context, case.num_heads, size)
                rows = torch.randn(shape, generator=generator, device=plane.device)
                if plane is self.planes[0]:
                    rows[..., 0] = KEY_OFFSET
                numbers = (rows / (1 if case.kv_cache_dtype == "auto" else MEAN_SCALE)).to(self.item)
                self.layout.scatter(_as_integers(plane.data), slots, _as_integers(numbers))

    def read(self, plane: int, slots: Tensor) -> Tensor:
        """Return the numbers of the rows of slots `[n, m]`, float64 `[n, m, num_heads, head size]`."""
        codes = self.layout.gather(_as_integers(self.planes[plane]), slots.view(-1))
        numbers: Tensor = codes.view(self.item).double().unflatten(0, slots.shape)
        if self.largest.kv_cache_dtype == "auto":
            return numbers
        return numbers * self.scales[plane].double().view(-1, 1)

    def unchanged(self) -> bool:
        """Return whether what an equal copy reads is as it was when it was filled."""
        return self.sums == self._sums()

    def _sums(self) -> list[int]:
        return checksums([self.inputs, self.slots])

    def build(self, case: Case, mappings: int, windows: int = 1, cold: bool = False) -> Tensors:
        """See `workload.Memory.build`.

        Raises:
            Unsupported: The cache has too few blocks for windows that share none.
        """
        blocks, count, device = self.op.count_blocks(case), case.num_tokens, self.slots.device
        if cold and windows * count * blocks > case.num_blocks:
            raise Unsupported(
                f"timer.inputs=cold needs {windows * count * blocks} blocks, and the cache has "
                f"{case.num_blocks}; take more workload.num_blocks or timer.inputs=hot"
            )
        tables = torch.empty((windows if cold else 1, count, blocks), dtype=torch.int32, device=device)
        rows = self.storage[GUARD_BYTES:-GUARD_BYTES].view(self.queries.dtype)
        shape = (mappings, count, case.num_query_heads, case.head_size_v)
        tensors = Tensors(
            case=case,
            memory=self,
            outputs=rows[: math.prod(shape)].view(shape),
            tables=tables.expand(windows, -1, -1),
            seq_lens=torch.full((count,), case.context, dtype=torch.int32, device=device),
            first_queries=tuple(range(windows)),
        )
        tensors.fill_pasts(BOUND)
        return tensors


@contextmanager
def allocate(
    op: "PagedDecode", largest: Case, layout: Layout, source: torch.dtype, item: torch.dtype, windows: int
) -> Iterator[Memory]:
    """Allocate a curve's memory inside the block and free it at the end; see `op.Op.allocate`."""
    device = torch.device(largest.device)
    planes = layout.planes(largest, item.itemsize, layer=largest.num_layers // 2)
    cache_bytes = planes.items * item.itemsize
    seqs = min(largest.num_tokens, largest.num_blocks)
    output_bytes = op.places * seqs * largest.num_query_heads * largest.head_size_v * source.itemsize
    if device.type == "cuda":
        output_bytes = max(output_bytes, LEAST_GPU_OUTPUTS)
    queries = (seqs + windows, largest.num_query_heads, largest.head_size)
    device_memory.check(largest, cache_bytes, output_bytes + math.prod(queries) * source.itemsize)
    inputs = torch.empty(cache_bytes, dtype=torch.uint8, device=device)
    items = inputs.view(source if largest.kv_cache_dtype == "auto" else torch.uint8)
    memory = Memory(
        op=op,
        largest=largest,
        layout=layout,
        item=item,
        inputs=inputs,
        planes=(_view(items, planes.key), _view(items, planes.value)),
        queries=torch.empty(queries, dtype=source, device=device),
        scales=torch.empty(
            (2, largest.num_heads if largest.scale == "per_head" else 1), dtype=torch.float32, device=device
        ),
        slots=torch.empty(largest.num_blocks, dtype=torch.int64, device=device),
        storage=torch.empty(output_bytes + 2 * GUARD_BYTES, dtype=torch.uint8, device=device),
    )
    try:
        memory.fill()
        yield memory
    finally:
        del inputs, items, memory
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _as_integers(plane: Tensor) -> Tensor:
    return plane.view(INTEGERS[plane.itemsize])


def _view(items: Tensor, plane: Plane) -> Tensor:
    return items.as_strided(plane.shape, plane.strides, items.storage_offset() + plane.offset)
