import pytest
import torch

from kvexp import ceiling
from kvexp.impl import make
from kvexp.law import POISON, poison
from kvexp.replicas import Plan
from kvexp.workload import GUARD_BYTES, allocate
from tests import composed


@pytest.fixture
def memory():
    made = composed.experiment("workload=tiny", "impl=torch").resolved("cpu")
    case = max(made.cases(), key=lambda case: case.num_tokens)
    with allocate(case, make(made.layout), torch.bfloat16) as held:
        poison(held.cache)
        yield held


def walking(mappings, windows=1, calls=16):
    """The plan of calls that walk through so many slot mappings and inputs."""
    return Plan(calls, 0, mappings, "cold", True, windows, "cold")


def calls(moves):
    return [move.call(1) for move in moves]


def places(memory, calls):
    """For each call, what it wrote into the poisoned cache."""
    storage = memory.cache.storage[GUARD_BYTES:-GUARD_BYTES]
    found = []
    for call in calls:
        call()
        found.append((storage != POISON).nonzero().flatten().tolist())
        poison(memory.cache)
    return found


def test_copies_write_their_bytes_each_to_the_next_place(memory):
    memory.inputs.view(torch.uint8).fill_(1)
    moves = ceiling.moves(memory, 1, 40 + 8, 40, walking(3))
    # A place begins at an address of sixteen bytes.
    assert places(memory, calls(moves)) == [list(range(at, at + 40)) for at in (0, 48, 96)]


def test_copies_copy_the_inputs(memory):
    (call,) = calls(ceiling.moves(memory, 0, 1000, 1000, walking(1)))
    call()
    storage = memory.cache.storage[GUARD_BYTES:-GUARD_BYTES]
    assert torch.equal(storage[:1000], memory.inputs.view(torch.uint8).flatten()[:1000])


def test_copies_are_as_many_as_fit_the_cache(memory):
    size = memory.cache.storage.numel() - 2 * GUARD_BYTES
    assert len(ceiling.moves(memory, 0, size // 3, size // 3, walking(16))) == 2
    assert ceiling.moves(memory, 0, 2 * size, 2 * size, walking(16)) == []


def test_a_cpu_has_no_copy_that_reads_more_than_it_writes(memory):
    assert ceiling.moves(memory, 0, 2000, 1000, walking(1)) == []


def test_what_copies_wrote_is_poison_again(memory):
    for call in calls(ceiling.moves(memory, 0, 1000, 1000, walking(5))):
        call()
    ceiling.restore(memory, 1000, 5)
    assert memory.cache.storage.unique().tolist() == [POISON]


def test_a_cpu_has_one_shape_of_copy():
    assert ceiling.unrolls("cpu", 1 << 30) == (1,)
