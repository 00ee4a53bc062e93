"""batch, memcpy2d: the GPU's copy engines as a transfer, as engines without kernels hand caches over.

The host gives the engines addresses and sizes. It makes them from the numbers of the blocks outside the timed
call, as an engine that plans a transfer has them, so `refresh` must be called after the numbers change.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.gpu import copy_engine
from kvexp.impl import Refreshing
from kvexp.layout.pieces import (
    Dim,
    Integers,
    find_block_pieces,
    join_neighbours,
    list_addresses,
    list_offsets,
)
from kvexp.op import Call


class _Copies:
    """One bound transfer."""

    def __init__(
        self, source: Tensor, source_blocks: Tensor, destination: Tensor, destination_blocks: Tensor
    ) -> None:
        self._from, self._to = (source, source_blocks), (destination, destination_blocks)
        self._pieces = find_block_pieces(source, destination)
        index = source.device.index
        self._device = torch.cuda.current_device() if index is None else index

    def _list_addresses(self, dims: Sequence[Dim]) -> tuple[Integers, Integers]:
        """List the addresses of what lies along these dims of each block, in source and destination."""
        offsets, own_offsets = list_offsets(dims)
        return list_addresses(*self._from, offsets), list_addresses(*self._to, own_offsets)

    def update(self) -> None:
        """Make the addresses anew from the numbers of the blocks."""
        raise NotImplementedError

    def __call__(self) -> None:
        """Submit the copies."""
        raise NotImplementedError


class _Batch(_Copies):
    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self._batch = copy_engine.Batch(self._device)

    def update(self) -> None:
        source, destination = self._list_addresses(self._pieces.dims)
        self._batch.set_copies(*join_neighbours(source, destination, self._pieces.piece_bytes))

    def __call__(self) -> None:
        self._batch.submit()


class _Rectangles(_Copies):
    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        row_bytes, dims = self._pieces
        rows = dims[-1] if dims else Dim(1, row_bytes, row_bytes)
        self._rectangles = copy_engine.Rectangles(self._device, row_bytes, *rows)

    def update(self) -> None:
        self._rectangles.set_copies(*self._list_addresses(self._pieces.dims[:-1]))

    def __call__(self) -> None:
        self._rectangles.submit()


class CopyEngine(Refreshing):
    """The copy engines as an implementation of op.transfer."""

    name: str
    untimed = ""
    copies: ClassVar[type[_Copies]]

    def __init__(self, device: str) -> None:
        if not device.startswith("cuda"):
            raise Unsupported(
                f"impl={self.name} drives the copy engines of an NVIDIA GPU; on a CPU try impl=torch"
            )
        super().__init__()

    def transfer(
        self, source: Tensor, source_blocks: Tensor, destination: Tensor, destination_blocks: Tensor
    ) -> Call:
        """Bind `op.transfer` to these tensors."""
        return self.keep(self.copies(source, source_blocks, destination, destination_blocks))


class Batch(CopyEngine):
    """Copy each contiguous run of bytes as one of a batch, which one call of cuMemcpyBatchAsync submits."""

    name = "batch"
    copies = _Batch


class Memcpy2D(CopyEngine):
    """Copy pieces that lie one distance apart by one cuMemcpy2DAsync: all slots of a block of NHD."""

    name = "memcpy2d"
    copies = _Rectangles
