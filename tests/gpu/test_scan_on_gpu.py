"""The kernels of scan.cu answer as torch does on a CPU."""

import pytest
import torch

from kvexp.gpu import scan

SIZES = [0, 1, 15, 16, 17, 4096, 100_003, 300 << 20]


@pytest.fixture(params=SIZES)
def bytes_there(request):
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randint(256, (request.param,), dtype=torch.uint8, device="cuda", generator=generator)


def test_a_checksum_is_the_cpu_s(bytes_there):
    assert scan.checksum(bytes_there) == scan.checksum(bytes_there.cpu())
    unaligned = bytes_there[1:]
    assert scan.checksum(unaligned) == int(unaligned.sum(dtype=torch.int64))


def test_poison_is_the_cpu_s(bytes_there):
    asked = torch.empty(bytes_there.shape, dtype=torch.uint8)
    scan.poison(asked)
    scan.poison(bytes_there)
    assert torch.equal(bytes_there.cpu(), asked)
    size = bytes_there.numel() // 32 * 16
    bytes_there[size:] = 0
    scan.poison(bytes_there, size)
    assert torch.equal(bytes_there.cpu(), asked)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(("order", "slot_dim"), [((0, 1, 2, 3), 1), ((0, 2, 1, 3), 1), ((0, 1, 2, 3), 3)])
def test_rows_become_poison_as_on_a_cpu(dtype, order, slot_dim):
    blocks, generator = 300, torch.Generator().manual_seed(0)
    slots = torch.randperm(blocks * 16, generator=generator)[: blocks * 5]
    found = []
    for device in ("cpu", "cuda"):
        storage = torch.zeros(4096 + blocks * 16 * 24 * dtype.itemsize + 5, dtype=torch.uint8, device=device)
        shape = (blocks, 4, 6, 16) if slot_dim == 3 else (blocks, 16, 4, 6)
        plane = (
            storage[4096:-5]
            .view(dtype)
            .view([shape[dim] for dim in order])
            .permute([order.index(dim) for dim in range(4)])
        )
        scan.poison_rows(storage, plane, slot_dim, slots.to(device))
        found.append(storage.cpu())
    assert torch.equal(*found)
    assert int((found[0] != 0).sum()) > 0.9 * len(slots) * 24 * dtype.itemsize


@pytest.mark.long
def test_one_other_bit_anywhere_is_found(bytes_there):
    tensor = bytes_there
    scan.poison(tensor)
    size = tensor.numel()
    assert scan.find_unpoisoned(tensor)() is None
    for at in {0, 1, size // 3, size // 2, size - 17, size - 1} & set(range(size)):
        tensor[at] ^= 0x10
        assert scan.find_unpoisoned(tensor)() == at
        tensor[at] ^= 0x10
    assert scan.find_unpoisoned(tensor)() is None


def test_the_first_other_byte_at_the_time_of_the_call_is_returned(bytes_there):
    size = bytes_there.numel()
    for first in (size // 3, max(0, size - 17), max(0, size - 1)):
        scan.poison(bytes_there)
        bytes_there[first:] ^= 0xFF
        answer = scan.find_unpoisoned(bytes_there)
        scan.poison(bytes_there)
        assert answer() == (first if size else None)
