"""Copy blocks by gathering them, then scattering them."""

from torch import Tensor

from kvexp.impl.torch import Torch, as_indexable
from kvexp.op import Call


def bind(
    impl: Torch, source: Tensor, source_blocks: Tensor, destination: Tensor, destination_blocks: Tensor
) -> Call:
    """Bind the op to these tensors."""
    copy = impl.compiled(_copy)
    source, destination = as_indexable(source), as_indexable(destination)

    def call() -> None:
        copy(source, source_blocks, destination, destination_blocks)

    return call


def _copy(source: Tensor, source_blocks: Tensor, destination: Tensor, destination_blocks: Tensor) -> None:
    destination[:, :, destination_blocks] = source[:, :, source_blocks]
