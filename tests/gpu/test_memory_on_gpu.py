"""The kernels of memory.cu answer as torch does on a CPU."""

import pytest
import torch

from kvexp import memory

SIZES = [0, 1, 15, 16, 17, 4096, 100_003, 300 << 20]


@pytest.fixture(params=SIZES)
def bytes_there(request):
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randint(256, (request.param,), dtype=torch.uint8, device="cuda", generator=generator)


def test_a_checksum_is_the_cpu_s(bytes_there):
    assert memory.checksum(bytes_there) == memory.checksum(bytes_there.cpu())
    unaligned = bytes_there[1:]
    assert memory.checksum(unaligned) == int(unaligned.sum(dtype=torch.int64))


def test_one_other_bit_anywhere_is_found(bytes_there):
    tensor = bytes_there.fill_(0xA5)
    size = tensor.numel()
    for part in (tensor, tensor[1:]):
        assert memory.first_other(0xA5, part)() is None
        assert memory.first_other(0x5A, part)() == (0 if part.numel() else None)
    for at in {0, 1, size // 3, size // 2, size - 17, size - 1} & set(range(size)):
        tensor[at] ^= 0x10
        assert memory.first_other(0xA5, tensor)() == at
        tensor[at] ^= 0x10
    assert memory.first_other(0xA5, tensor)() is None


def test_the_first_of_many_other_bytes_is_told_as_it_was_when_it_was_asked(bytes_there):
    size = bytes_there.numel()
    for first in (size // 3, max(0, size - 17), max(0, size - 1)):
        tensor = bytes_there.fill_(0xA5)
        tensor[first:] = 0
        answer = memory.first_other(0xA5, tensor)
        tensor.fill_(0xA5)
        assert answer() == (first if size else None)
