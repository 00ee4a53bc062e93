"""Build the tensors of a transfer: the caches of two ranks, and the numbers of the blocks that are copied.

Places are blocks of the destination, windows are blocks of the source.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.gpu import far_memory
from kvexp.gpu.scan import checksums
from kvexp.layout import Layout, Sizes, view_layers
from kvexp.workload import APART, BOUND, GUARD_BYTES, INTEGERS, Part, device_memory

if TYPE_CHECKING:
    from kvexp.op.transfer import Shard, Transfer


@dataclass(frozen=True)
class Tensors:
    """The tensors of one point; see `workload.Tensors`.

    Attributes:
        case: The point.
        memory: The curve's memory.
        windows: int64 `[windows, n]`: blocks of the source.
        places: int64 `[mappings, n]`: blocks of the destination, no block twice.
        order: For each number in `windows`, its place in the order of the source's blocks.
        index: The window whose blocks are `source_blocks`.
        sums: Checksums of the source and of all numbers when they were last set.
    """

    inputs = "the source or the numbers of blocks"

    case: Case
    memory: "Memory"
    windows: Tensor
    places: Tensor
    order: Tensor
    index: int = 0
    sums: list[int] = field(default_factory=list)

    @property
    def source(self) -> Tensor:
        """`[num_layers, planes, num_blocks, block_size, heads, width]`."""
        return self.memory.source

    @property
    def source_blocks(self) -> Tensor:
        """The window's blocks."""
        return self.windows[self.index]

    @property
    def destination(self) -> Tensor:
        """The same with the destination's blocks."""
        return self.memory.destination

    def window(self, index: int) -> "Tensors":
        """Return these tensors with another window's blocks."""
        return replace(self, index=index)

    def list_parts(self) -> Sequence[Part]:
        """List the planes of each layer."""
        return [
            self._make_part(layer, plane)
            for layer, plane in torch.cartesian_prod(
                torch.arange(self.source.shape[0]), torch.arange(self.source.shape[1])
            ).tolist()
        ]

    def _make_part(self, layer: int, plane: int) -> Part:
        source = self.source[layer, plane]
        codes = source.view(INTEGERS[source.itemsize])

        def expect(written: slice) -> Tensor:
            token = torch.arange(written.start, written.stop, device=codes.device)
            block, offset = self.source_blocks[token // self.case.block_size], token % self.case.block_size
            return codes[block, offset].view(torch.uint8)

        row_bytes = source[0, 0].numel() * source.itemsize
        name = f"destination[{layer}, {plane}]"
        return Part(name, self.destination[layer, plane], self.memory.layout, expect, row_bytes)

    def number(self, written: int) -> int:
        """Return the token of the request."""
        return written

    def written_slots(self, mappings: int) -> Tensor:
        """Return the slots of the first mappings, int64 `[mappings, n * block_size]`."""
        size = self.case.block_size
        offsets = torch.arange(size, device=self.places.device)
        return (self.places[:mappings].unsqueeze(-1) * size + offsets).flatten(1)

    def redraw(self, draw: int) -> None:
        """Change the source and the numbers of the blocks in place."""
        self.memory.draw(self.case, draw)
        self.number_blocks()

    def number_blocks(self) -> None:
        """Set the numbers of the blocks from the memory's order, and store the checksums."""
        source, destination = self.memory.slots.data.view(2, -1)
        self.windows.data.copy_(source[self.order])
        self.places.data.copy_(destination[: self.places.numel()].view(self.places.shape))
        self.sums[:] = self._sums()

    def unchanged(self, others: bool = False) -> bool:
        """Return whether the source and the numbers are as they were when last set; it has no others."""
        return self.sums == self._sums()

    def _sums(self) -> list[int]:
        numbers = [tensor.reshape(-1) for tensor in (self.windows, self.places)]
        return checksums([self.memory.inputs, self.memory.slots, *numbers])


@dataclass(frozen=True)
class Memory:
    """The memory of a curve; see `workload.Memory`.

    Attributes:
        op: The op.
        largest: The case with the curve's largest `num_tokens`.
        layout: Of both caches.
        inputs: uint8: the source's cache, all heads.
        storage: uint8: the destination's cache, all heads, and its guards.
        source: The heads that are read; see `op.transfer`.
        destination: The heads that are written.
        slots: int64 `[2 * num_blocks]`: the source's blocks in the order of requests, then the destination's.
        far: Whether source or destination is not in the device's own memory; see `workload.to`.
        sums: Checksums of the source and the order when they were last set.
    """

    op: "Transfer"
    largest: Case
    layout: Layout
    inputs: Tensor
    storage: Tensor
    source: Tensor
    destination: Tensor
    slots: Tensor
    far: bool = False
    sums: list[int] = field(default_factory=list)

    def fill(self) -> None:
        """Fill the source and the order with the draw that calls are bound with."""
        self.draw(self.largest, BOUND)
        self.sums[:] = self._sums()

    def draw(self, case: Case, draw: int) -> None:
        """Draw the source's bytes and the order of the blocks anew, in place."""
        device = self.slots.device
        generator = torch.Generator(device).manual_seed(case.seed + draw * APART)
        for order in self.slots.data.view(2, -1):
            if case.slots == "random":
                order.copy_(torch.randperm(len(order), generator=generator, device=device))
            else:
                begin = torch.randint(len(order), (), generator=generator, device=device)
                order.copy_(torch.arange(len(order), device=device).roll(-int(begin)))
        whole = self.inputs.data[: self.inputs.numel() // 8 * 8].view(torch.int64)
        whole.random_(-(2**63), 2**63 - 1, generator=generator)
        self.inputs.data[whole.numel() * 8 :].random_(0, 256, generator=generator)

    def unchanged(self) -> bool:
        """Return whether the source and the order are as they were when they were filled."""
        return self.sums == self._sums()

    def _sums(self) -> list[int]:
        return checksums([self.inputs, self.slots])

    def build(self, case: Case, mappings: int, windows: int = 1, cold: bool = False) -> Tensors:
        """See `workload.Memory.build`.

        Raises:
            Unsupported: The source has too few blocks for windows that share none.
        """
        blocks, device = self.op.count_blocks(case), self.slots.device
        if cold and windows * blocks > case.num_blocks:
            raise Unsupported(
                f"timer.inputs=cold needs {windows * blocks} blocks of the source, and it has "
                f"{case.num_blocks}; take more workload.num_blocks or timer.inputs=hot"
            )
        begins = torch.arange(windows, device=device).unsqueeze(-1) * (blocks if cold else 1)
        tensors = Tensors(
            case=case,
            memory=self,
            windows=torch.empty((windows, blocks), dtype=torch.int64, device=device),
            places=torch.empty((mappings, blocks), dtype=torch.int64, device=device),
            order=(begins + torch.arange(blocks, device=device)) % case.num_blocks,
        )
        tensors.number_blocks()
        return tensors


@contextmanager
def allocate(
    op: "Transfer", largest: Case, layout: Layout, source: torch.dtype, shard: "Shard"
) -> Iterator[Memory]:
    """Allocate a curve's memory inside the block and free it at the end; see `op.Op.allocate`."""
    item = source if largest.kv_cache_dtype == "auto" else torch.uint8
    sizes = op.source_sizes(largest), op.destination_sizes(largest)
    read, written = (layout.planes(size, item.itemsize).items * item.itemsize for size in sizes)
    places = ("host", "device") if largest.to == "from_host" else ("device", largest.to)
    _check_memory(largest, dict.fromkeys(places, 0), zip(places, (read, written), strict=True))
    with ExitStack() as stack:
        inputs = stack.enter_context(_allocate(largest, places[0], read))
        storage = stack.enter_context(_allocate(largest, places[1], written + 2 * GUARD_BYTES))
        memory = Memory(
            op=op,
            largest=largest,
            layout=layout,
            inputs=inputs,
            storage=storage,
            source=_view(inputs.view(item), layout, sizes[0], shard.source_head, shard.heads),
            destination=_view(
                storage[GUARD_BYTES:-GUARD_BYTES].view(item),
                layout,
                sizes[1],
                shard.destination_head,
                shard.heads,
            ),
            slots=torch.empty(2 * largest.num_blocks, dtype=torch.int64, device=largest.device),
            far=largest.to != "device",
        )
        try:
            memory.fill()
            yield memory
        finally:
            del inputs, storage, memory
            if largest.device != "cpu":
                torch.cuda.empty_cache()


def _check_memory(largest: Case, needed: dict[str, int], parts: Iterable[tuple[str, int]]) -> None:
    """Check that what lies in each place fits it."""
    for place, num_bytes in parts:
        needed[place] += num_bytes
    for place, num_bytes in needed.items():
        device_memory.check(replace(largest, device=_find_device(largest, place)), num_bytes, 0)


def _find_device(case: Case, place: str) -> str:
    """Return the device whose memory a place of `workload.to` is."""
    if place == "peer":
        return far_memory.find_peer(case.device)
    return "cpu" if place == "host" else case.device


@contextmanager
def _allocate(case: Case, place: str, num_bytes: int) -> Iterator[Tensor]:
    """Allocate bytes in a place of `workload.to` inside the block, as a tensor of the case's device."""
    device, other = torch.device(case.device), torch.device(_find_device(case, place))
    if place == "host":
        with far_memory.allocate_pinned(num_bytes, device) as memory:
            yield memory
    elif place == "peer":
        with far_memory.allocate_peer(num_bytes, device, other) as memory:
            yield memory
    else:
        yield torch.empty(num_bytes, dtype=torch.uint8, device=device)


def _view(items: Tensor, layout: Layout, sizes: Sizes, head: int, heads: int) -> Tensor:
    """Return these heads of all layers as one tensor; see `op.transfer` for its dims."""
    whole = view_layers(layout, sizes, items.itemsize)
    *others, _, width = whole.shape
    offset = items.storage_offset() + whole.offset + head * whole.strides[4]
    return items.as_strided((*others, heads, width), whole.strides, offset)
