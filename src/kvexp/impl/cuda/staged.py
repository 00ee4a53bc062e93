"""staged: gather what is transferred into blocks of the destination's form, then copy by copy engines."""

import weakref

import torch
from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.gpu import copy_engine, far_memory
from kvexp.impl import Refreshing
from kvexp.impl.cuda import Cuda
from kvexp.layout.pieces import BLOCK_DIM, find_block_pieces, join_neighbours, list_addresses, list_offsets
from kvexp.op import Call, get_method


class Staged(Refreshing):
    """The kernel of impl=cuda into memory of its GPU, then one batch of copies of what is contiguous there.

    Blocks of the destination that follow one another are one copy. As with impl=batch, their numbers are read
    outside the timed call, so `refresh` must be called after they change.

    Args:
        device: `cuda:N`.
        **options: Those of impl=cuda.
    """

    name = "staged"
    untimed = ""

    def __init__(self, device: str, **options: object) -> None:
        super().__init__()
        self._kernels = Cuda(device, **options)
        # Calls follow one another on one stream, so that those of one size share the memory.
        self._staging: weakref.WeakValueDictionary[tuple[object, ...], Tensor] = weakref.WeakValueDictionary()

    def transfer(
        self, source: Tensor, source_blocks: Tensor, destination: Tensor, destination_blocks: Tensor
    ) -> Call:
        """Bind `op.transfer` to these tensors.

        Raises:
            Unsupported: The source is in host memory, where there is no kernel to gather it.
        """
        if far_memory.is_on_host(source):
            raise Unsupported(
                "impl=staged gathers in the GPU that holds the source; with workload.to=from_host the host "
                "holds it; take impl=cuda, batch or memcpy2d"
            )
        staging = self._share_staging(destination, len(source_blocks))
        numbers = torch.arange(len(source_blocks), device=source.device)
        gather = get_method(self._kernels, "transfer")(source, source_blocks, staging, numbers)
        return self.keep(_Call(gather, staging, numbers, destination, destination_blocks))

    def _share_staging(self, destination: Tensor, blocks: int) -> Tensor:
        """Return memory of so many blocks whose dims lie as the destination's, without gaps."""
        shape = [blocks if dim == BLOCK_DIM else size for dim, size in enumerate(destination.shape)]
        strides, step = [0] * len(shape), 1
        for dim in sorted(
            range(len(shape)), key=lambda dim: (destination.stride(dim), dim != len(shape) - 1)
        ):
            strides[dim], step = step, step * shape[dim]
        key = (*shape, *strides, destination.dtype)
        staging = self._staging.get(key)
        if staging is None:
            staging = torch.empty_strided(shape, strides, dtype=destination.dtype, device=destination.device)
            self._staging[key] = staging
        return staging


class _Call:
    """One bound call."""

    def __init__(
        self,
        gather: Call,
        staging: Tensor,
        numbers: Tensor,
        destination: Tensor,
        destination_blocks: Tensor,
    ) -> None:
        self._gather, self._from, self._to = gather, (staging, numbers), (destination, destination_blocks)
        self._batch = copy_engine.Batch(torch.cuda.current_device())
        self._piece_bytes, dims = find_block_pieces(staging, destination)
        self._offsets = list_offsets(dims)

    def update(self) -> None:
        """Make the addresses anew from the numbers of the blocks."""
        offsets, own_offsets = self._offsets
        source, destination = list_addresses(*self._from, offsets), list_addresses(*self._to, own_offsets)
        self._batch.set_copies(*join_neighbours(source, destination, self._piece_bytes))

    def __call__(self) -> None:
        """Gather, then submit the copies."""
        self._gather()
        self._batch.submit()
