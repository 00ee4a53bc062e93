"""Transfers that are wrong on purpose; each must be found out."""

import torch

from kvexp.impl.torch import Torch


class HeadTooFar(Torch):
    """Copies the heads beside those that are wanted."""

    def transfer(self, source, source_blocks, destination, destination_blocks):
        beside = source.storage_offset() - source.stride(4)
        source = source.as_strided(source.shape, source.stride(), beside)
        return super().transfer(source, source_blocks, destination, destination_blocks)


class BlockTooFar(Torch):
    """Copies the block behind each."""

    def transfer(self, source, source_blocks, destination, destination_blocks):
        def call():
            behind = (source_blocks + 1) % source.shape[2]
            destination[:, :, destination_blocks] = source[:, :, behind]

        return call


class OneBlockMore(Torch):
    """Copies a further block to where nobody asked for one."""

    def transfer(self, source, source_blocks, destination, destination_blocks):
        copy = super().transfer(source, source_blocks, destination, destination_blocks)

        def call():
            copy()
            taken = set(destination_blocks.tolist())
            free = next(block for block in range(destination.shape[2]) if block not in taken)
            destination[:, :, free] = 0

        return call


class LastLayerMissing(Torch):
    """Copies all layers but the last."""

    def transfer(self, source, source_blocks, destination, destination_blocks):
        return super().transfer(source[:-1], source_blocks, destination[:-1], destination_blocks)


class KeysAlone(Torch):
    """Copies K and not V."""

    def transfer(self, source, source_blocks, destination, destination_blocks):
        return super().transfer(source[:, :1], source_blocks, destination[:, :1], destination_blocks)


class OldBlocks(Torch):
    """Keeps the numbers of the blocks that it saw when it was bound."""

    def transfer(self, source, source_blocks, destination, destination_blocks):
        return super().transfer(source, source_blocks.clone(), destination, destination_blocks)


class Emptying(Torch):
    """Moves the blocks: clears the source."""

    def transfer(self, source, source_blocks, destination, destination_blocks):
        copy = super().transfer(source, source_blocks, destination, destination_blocks)

        def call():
            copy()
            source[:, :, source_blocks] = 0

        return call


class EverySecond(Torch):
    """Skips every second call."""

    def transfer(self, source, source_blocks, destination, destination_blocks):
        copy = super().transfer(source, source_blocks, destination, destination_blocks)
        self.calls = 0

        def call():
            self.calls += 1
            if self.calls <= 40 or self.calls % 2:
                copy()

        return call


class ByLoops(Torch):
    """Copies item after item."""

    def transfer(self, source, source_blocks, destination, destination_blocks):
        def call():
            places = zip(source_blocks.tolist(), destination_blocks.tolist(), strict=True)
            for before, after in places:
                for place in torch.cartesian_prod(
                    *(torch.arange(source.shape[dim]) for dim in (0, 1, 3, 4, 5))
                ).tolist():
                    layer, plane, *row = place
                    destination[(layer, plane, after, *row)] = source[(layer, plane, before, *row)]

        return call
