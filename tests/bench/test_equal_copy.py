import pytest
import torch

from kvexp.bench import equal_copy
from kvexp.bench.mode import prepare
from kvexp.errors import IncorrectResult
from kvexp.gpu import scan
from kvexp.gpu.scan import find_unpoisoned
from kvexp.impl import make
from kvexp.timer.replay import Replay
from kvexp.timer.replay_plan import Plan
from kvexp.workload import GUARD_BYTES
from tests.helpers import compose
from tests.helpers.strides import all_poison


@pytest.fixture
def memory():
    made = compose.experiment("workload=tiny", "impl=torch").resolve("cpu")
    case = max(made.cases(), key=lambda case: case.num_tokens)
    with make(made.op).allocate(case, make(made.layout), torch.bfloat16) as held:
        scan.poison(held.cache.storage)
        yield held


def walking(mappings, windows=1, calls=16):
    """The plan of calls that walk through so many slot mappings and inputs."""
    return Plan(calls, 0, mappings, "cold", True, windows, "cold")


def calls(moves):
    return [move.make_call(1) for move in moves]


def places(memory, calls):
    """For each call, what it wrote into the poisoned cache."""
    storage = memory.cache.storage[GUARD_BYTES:-GUARD_BYTES]
    found, untouched = [], storage.clone()
    for call in calls:
        call()
        found.append((storage != untouched).nonzero().flatten().tolist())
        scan.poison(memory.cache.storage)
    return found


def test_copies_write_their_bytes_each_to_the_next_place(memory):
    storage = memory.cache.storage[GUARD_BYTES:-GUARD_BYTES]
    # No byte of what is read is the poison of a place where it goes.
    poison_there = zip(*(storage[at : at + 40].tolist() for at in (0, 48, 96)), strict=True)
    others = [next(byte for byte in range(4) if byte not in there) for there in poison_there]
    memory.inputs.view(torch.uint8).view(-1)[:40] = torch.tensor(others, dtype=torch.uint8)
    moves = equal_copy.plan_moves(memory, 1, 40 + 8, 40, walking(3))
    # A place begins at an address of sixteen bytes.
    assert places(memory, calls(moves)) == [list(range(at, at + 40)) for at in (0, 48, 96)]


def test_copies_copy_the_inputs(memory):
    (call,) = calls(equal_copy.plan_moves(memory, 0, 1000, 1000, walking(1)))
    call()
    storage = memory.cache.storage[GUARD_BYTES:-GUARD_BYTES]
    assert torch.equal(storage[:1000], memory.inputs.view(torch.uint8).flatten()[:1000])


def test_copies_are_as_many_as_fit_the_cache(memory):
    size = memory.cache.storage.numel() - 2 * GUARD_BYTES
    assert len(equal_copy.plan_moves(memory, 0, size // 3, size // 3, walking(16))) == 2
    assert equal_copy.plan_moves(memory, 0, 2 * size, 2 * size, walking(16)) == []


@pytest.mark.parametrize("written", [16, 1000, 1008])
def test_what_copies_wrote_is_poison_again_and_nothing_between(memory, written):
    moves = equal_copy.plan_moves(memory, 0, written, written, walking(5))
    for call in calls(moves):
        call()
    equal_copy.restore(memory, moves)
    assert all_poison(memory.cache)
    between = {GUARD_BYTES + 1000} if written == 1000 else set()
    for at in {GUARD_BYTES - 1, GUARD_BYTES + 5 * -(-written // 16) * 16} | between:
        memory.cache.storage[at] ^= 1
        equal_copy.restore(memory, moves)
        assert find_unpoisoned(memory.cache.storage)() == at
        memory.cache.storage[at] ^= 1


def test_copies_are_checked_with_all_that_they_might_have_changed(memory):
    moves = equal_copy.plan_moves(memory, 0, 1000, 1000, walking(5))
    replay = Replay([prepare("no_graph", calls(moves))], 5, lambda turn: 0.0)
    for _ in range(2):
        equal_copy.check_copies(memory, moves, replay)
        assert all_poison(memory.cache)
    for at in (0, GUARD_BYTES + 1000, -1):
        memory.cache.storage[at] ^= 1
        with pytest.raises(IncorrectResult, match="a byte outside the written slots changed"):
            equal_copy.check_copies(memory, moves, replay)
        assert all_poison(memory.cache)


def test_a_cpu_has_one_shape_of_copy(memory):
    assert equal_copy.list_unrolls(memory, 1 << 30) == (1,)


def test_of_many_reads_as_many_threads_write_as_a_gpu_holds(memory, monkeypatch):
    """On a GPU; here the plan alone."""
    monkeypatch.setattr(equal_copy, "_count_threads", lambda device: 64)
    monkeypatch.setattr(equal_copy, "_is_cpu", lambda storage: False)
    reads = memory.inputs.numel() * memory.inputs.itemsize // 1024
    assert reads > 1
    (move, *_) = equal_copy.plan_moves(memory, 4, reads * 1024 + 32, 16, walking(1))
    assert (move.reads, move.place.numel()) == (reads, 1024)
    (move, *_) = equal_copy.plan_moves(memory, 4, 16 * 48 + 32, 48, walking(1))
    assert (move.reads, move.place.numel()) == (16, 48)


@pytest.mark.parametrize(
    ("read", "written", "beside"),
    [
        (4 * 1152, 4 * 656, 4 * (1152 - 656) + 32),  # codes with scales: no whole multiple
        (2 * 512, 512, 32),  # fp8: twice as many, and slots
        (4 * 1024, 4 * 144, 4 * (1024 - 7 * 144) + 32),
    ],
)
def test_a_copy_reads_as_many_bytes_as_the_op(memory, monkeypatch, read, written, beside):
    """On a GPU; here the plan alone."""
    monkeypatch.setattr(equal_copy, "_is_cpu", lambda storage: False)
    (move, *_) = equal_copy.plan_moves(memory, 4, read + 32, written, walking(1))
    assert (move.place.numel(), move.extra.numel()) == (written, beside)
    assert move.reads * written + beside == read + 32
    of_slots = move.extra.data_ptr() == memory.slots.data_ptr()
    assert of_slots == (beside == 32)
    if not of_slots:
        assert move.extra.data_ptr() == memory.inputs.data_ptr() + move.reads * written


def test_a_copy_of_all_inputs_reads_no_more_than_there_are(memory, monkeypatch):
    """On a GPU; here the plan alone."""
    monkeypatch.setattr(equal_copy, "_is_cpu", lambda storage: False)
    size = memory.inputs.numel() * memory.inputs.itemsize
    (move, *_) = equal_copy.plan_moves(memory, 4, size + 32, size // 32 * 16 + 16, walking(1))
    assert move.reads * move.place.numel() + move.extra.numel() == size


def test_on_a_cpu_there_is_no_copy_that_reads_less_than_the_op(memory):
    assert equal_copy.plan_moves(memory, 4, 1152 + 32, 656, walking(1)) == []
