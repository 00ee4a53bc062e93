"""Find the contiguous pieces into which two tensors of one shape fall where one is copied to the other."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

BLOCK_DIM = 2
"""The dim of blocks in the tensors of a transfer."""


class Dim(NamedTuple):
    """A dim that pieces lie along.

    Attributes:
        size: Pieces.
        source_step: Bytes from one piece to the next in the source.
        step: The same in the destination.
    """

    size: int
    source_step: int
    step: int


class Pieces(NamedTuple):
    """Pieces that are contiguous in both tensors.

    Attributes:
        piece_bytes: Bytes of one.
        dims: The dims that they lie along, the outermost of the source first; each has two or more.
    """

    piece_bytes: int
    dims: tuple[Dim, ...]

    @property
    def number(self) -> int:
        """Return the number of pieces."""
        return math.prod(dim.size for dim in self.dims)


def find_pieces(
    sizes: Sequence[int], source_strides: Iterable[int], strides: Iterable[int], item_bytes: int
) -> Pieces:
    """Find the largest pieces; sizes are those of the tensors' dims, strides are in items."""
    piece_bytes, dims = item_bytes, list[Dim]()
    each = zip(source_strides, strides, sizes, strict=True)
    for source_step, step, size in sorted((a * item_bytes, b * item_bytes, size) for a, b, size in each):
        if size > 1 and source_step == step == piece_bytes:
            piece_bytes *= size
        elif size > 1:
            dims.insert(0, Dim(size, source_step, step))
    return Pieces(piece_bytes, tuple(dims))


def find_block_pieces(source: Any, destination: Any) -> Pieces:
    """Return the pieces of one block of both.

    Args:
        source: A tensor `[num_layers, planes, num_blocks, block_size, heads, width]`.
        destination: Another with as many of each but blocks.
    """
    of_block = tuple(1 if dim == BLOCK_DIM else size for dim, size in enumerate(source.shape))
    return find_pieces(of_block, source.stride(), destination.stride(), source.itemsize)


def list_offsets(dims: Sequence[Dim]) -> tuple[Integers, Integers]:
    """List the bytes from a block's first piece to each one, in the source and in the destination."""
    found = np.zeros((2, 1), np.int64)
    for dim in dims:
        steps = np.arange(dim.size) * np.array([[dim.source_step], [dim.step]])
        found = (found[:, :, None] + steps[:, None, :]).reshape(2, -1)
    return found[0], found[1]


def list_addresses(tensor: Any, blocks: Any, offsets: Integers) -> Integers:
    """List the addresses of the pieces of these blocks, int64: those of one block after those of another.

    Args:
        tensor: See `find_block_pieces`.
        blocks: int64 `[n]`, a tensor; read on the host.
        offsets: See `list_offsets`.
    """
    begins = blocks.cpu().numpy() * (tensor.stride(BLOCK_DIM) * tensor.itemsize) + tensor.data_ptr()
    found: Integers = (begins[:, None] + offsets).reshape(-1)
    return found


def join_neighbours(
    source: Integers, destination: Integers, piece_bytes: int
) -> tuple[Integers, Integers, Integers]:
    """Join pieces that follow one another in both tensors; return the addresses and the bytes of each run."""
    order = np.argsort(destination, kind="stable")
    source, destination = source[order], destination[order]
    apart = (np.diff(source) != piece_bytes) | (np.diff(destination) != piece_bytes)
    first = np.concatenate(([0], np.flatnonzero(apart) + 1))
    counts = np.diff(np.append(first, len(source)))
    return source[first], destination[first], counts * piece_bytes
