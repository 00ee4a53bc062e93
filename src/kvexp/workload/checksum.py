"""Whether a tensor still holds what it held."""

import torch
from torch import Tensor

CHECKSUM_WORDS = 8 << 20
"""Words that are summed at a time."""


def checksum(tensor: Tensor) -> int:
    """A number that changes when a byte of a contiguous tensor does, or when words trade places."""
    data = tensor.view(-1).view(torch.uint8)
    whole = data.numel() // 8 * 8
    total = data[whole:].sum(dtype=torch.int64)
    for chunk in torch.split(data[:whole].view(torch.int64), CHECKSUM_WORDS):
        odd = 2 * torch.arange(len(chunk), device=chunk.device) + 1
        total = total * 31 + (chunk * odd).sum()
    return int(total)
