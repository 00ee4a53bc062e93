import pytest
import torch

from kvexp import jit, memory

SIZES = [0, 1, 15, 16, 17, 4096, 100_003]
ARCHES = ["sm_80", "sm_89", "sm_90", "sm_100"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Real memories are looked at in chunks; so are these."""
    monkeypatch.setattr(memory, "CHUNK_WORDS", 100)


@pytest.mark.parametrize("size", SIZES)
def test_one_other_bit_anywhere_is_found(size):
    tensor = torch.full((size,), 0xA5, dtype=torch.uint8)
    assert memory.first_other(0xA5, tensor)() is None
    assert memory.first_other(0x5A, tensor)() == (0 if size else None)
    for at in {0, size // 2, size - 1} if size else ():
        tensor[at] ^= 1
        assert memory.first_other(0xA5, tensor)() == at
        tensor[at] ^= 1


def test_the_first_of_many_other_bytes_is_told_as_it_was_when_it_was_asked():
    tensor = torch.full((4096,), 0xA5, dtype=torch.uint8)
    tensor[700:] = 0
    answer = memory.first_other(0xA5, tensor)
    tensor.fill_(0xA5)
    assert answer() == 700


@pytest.mark.parametrize("size", SIZES)
def test_a_checksum_changes_with_any_byte_and_with_the_order_of_words(size):
    tensor = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = memory.checksum(tensor)
    assert memory.checksum(tensor.clone()) == found
    for at in {0, size // 2, size - 1} if size else ():
        changed = tensor.clone()
        changed[at] ^= 0x80
        assert memory.checksum(changed) != found
    if size >= 16:
        assert memory.checksum(torch.cat([tensor[8:16], tensor[:8], tensor[16:]])) != found


def test_a_checksum_is_of_bytes_whatever_they_mean():
    tensor = torch.randn(3, 40, dtype=torch.bfloat16)
    assert memory.checksum(tensor) == memory.checksum(tensor.view(torch.uint8))


@pytest.mark.parametrize("arch", ARCHES)
def test_the_kernels_compile(arch):
    assert jit.cubin(memory.SOURCE, {"THREADS": memory.THREADS}, arch)
