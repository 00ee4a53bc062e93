import pytest
import torch

from kvexp.gpu import nvrtc, scan

SIZES = [0, 1, 15, 16, 17, 4096, 100_003]
ARCHES = ["sm_80", "sm_89", "sm_90", "sm_100"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Real memories are looked at in chunks; so are these."""
    monkeypatch.setattr(scan, "CHUNK_WORDS", 100)


def poison_of(size):
    """Poison by its definition, one byte at a time."""
    words = [(index + 1) * 0x9E3779B97F4A7C15 % 2**64 for index in range(-(-size // 8))]
    return b"".join(word.to_bytes(8, "little") for word in words)[:size]


def poisoned(size):
    tensor = torch.empty(size, dtype=torch.uint8)
    scan.poison(tensor)
    return tensor


@pytest.mark.parametrize("size", SIZES)
def test_poison_follows_its_definition(size):
    assert bytes(poisoned(size).tolist()) == poison_of(size)


@pytest.mark.parametrize(("begin", "end"), [(0, 8), (8, 8), (8, 24), (16, 2000), (1000, 4096), (4088, None)])
def test_poison_of_a_part_is_that_of_its_places(begin, end):
    tensor = torch.zeros(4096, dtype=torch.uint8)
    scan.poison(tensor, begin, end)
    asked = torch.zeros(4096, dtype=torch.uint8)
    asked[begin:end] = poisoned(4096)[begin:end]
    assert torch.equal(tensor, asked)


def test_poison_from_elsewhere_is_found():
    """Whole blocks that were swapped, and poison that was written over poison."""
    for distance in (8, 16, 512, 2048, 65536):
        tensor = poisoned(4 * distance)
        tensor[distance : 2 * distance] = poisoned(4 * distance)[2 * distance : 3 * distance]
        assert distance <= scan.find_unpoisoned(tensor)() < distance + 8


@pytest.mark.parametrize("size", SIZES)
def test_one_other_bit_anywhere_is_found(size):
    tensor = poisoned(size)
    assert scan.find_unpoisoned(tensor)() is None
    for at in {0, size // 2, size - 1} if size else ():
        tensor[at] ^= 1
        assert scan.find_unpoisoned(tensor)() == at
        tensor[at] ^= 1


def test_the_first_other_byte_at_the_time_of_the_call_is_returned():
    tensor = poisoned(4096)
    tensor[700:] ^= 0xFF
    answer = scan.find_unpoisoned(tensor)
    scan.poison(tensor)
    assert answer() == 700


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("strides", "slot_dim"), [((256, 32, 8, 1), 1), ((256, 4, 32, 1), 1), ((256, 64, 1, 8), 3)]
)
def test_rows_that_were_written_become_poison_and_nothing_else_does(dtype, strides, slot_dim):
    storage = torch.zeros(64 + 4 * 256 * dtype.itemsize + 3, dtype=torch.uint8)
    shape = [4, 4, 4, 4]
    shape[slot_dim] = 8
    plane = storage[64:-3].view(dtype).as_strided(shape, strides, 64 // dtype.itemsize)
    slots = torch.tensor([31, 0, 9])
    scan.poison_rows(storage, plane, slot_dim, slots)
    written = torch.zeros(4 * 256, dtype=torch.bool).as_strided(shape, strides)
    rows = written.movedim(slot_dim, 1)
    rows[slots // 8, slots % 8] = True
    flat = torch.zeros(4 * 256, dtype=torch.bool)
    flat[: written.untyped_storage().nbytes()] = torch.empty(0, dtype=torch.bool).set_(
        written.untyped_storage()
    )
    asked = torch.zeros_like(storage)
    asked[64:-3][flat.repeat_interleave(dtype.itemsize)] = poisoned(len(storage))[64:-3][
        flat.repeat_interleave(dtype.itemsize)
    ]
    assert int(flat.sum()) == 3 * 16
    assert torch.equal(storage, asked)


@pytest.mark.parametrize("size", SIZES)
def test_a_checksum_changes_with_any_byte_and_with_the_order_of_words(size):
    tensor = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = scan.checksum(tensor)
    assert scan.checksum(tensor.clone()) == found
    for at in range(size) if size < 20 else (0, size // 2, size - 1):
        changed = tensor.clone()
        changed[at] ^= 0x80
        assert scan.checksum(changed) != found
    if size >= 16:
        assert scan.checksum(torch.cat([tensor[8:16], tensor[:8], tensor[16:]])) != found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.float8_e5m2])
def test_a_checksum_is_of_bytes_whatever_they_mean(dtype):
    tensor = torch.randn(3, 40).to(dtype)
    assert scan.checksum(tensor) == scan.checksum(tensor.view(torch.uint8))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("word", [1, 2, 4, 8])
def test_the_kernels_compile(arch, word):
    assert nvrtc.compile_cubin(scan.SOURCE, {"THREADS": scan.THREADS, "WORD": word}, arch)
