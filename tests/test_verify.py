import re

import pytest
import torch

from kvexp import verify as law_of_bytes
from kvexp.errors import IncorrectResult
from kvexp.impl import make
from kvexp.quantize import quantize
from kvexp.verify import POISON, poison, restore, verify
from kvexp.workload import GUARD_BYTES, allocate, build
from tests import composed, law

MAPPINGS = 3


@pytest.fixture(params=composed.options("layout"))
def layout(request):
    return request.param


@pytest.fixture(params=composed.options("kv_cache_dtype"))
def kv_cache_dtype(request):
    return request.param


@pytest.fixture
def tensors(layout, kv_cache_dtype):
    """A point of 16 tokens on a poisoned cache, with three slot mappings."""
    made = composed.experiment(
        "workload=tiny", "impl=torch", f"layout={layout}", f"kv_cache_dtype={kv_cache_dtype}",
        "workload.num_tokens=16",
    )  # fmt: skip
    (case,) = made.resolved("cpu").cases()
    with allocate(case, make(made.layout), torch.bfloat16) as memory:
        poison(memory.cache)
        yield build(case, memory, MAPPINGS)


def right(tensors):
    """Writes every mapping's rows, by a loop."""
    sides = (
        (tensors.key, tensors.key_cache, tensors.k_scale),
        (tensors.value, tensors.value_cache, tensors.v_scale),
    )
    for slots in tensors.slot_mappings.tolist():
        for rows, plane, scale in sides:
            codes = quantize(rows, tensors.kv_cache_dtype, scale)
            for token, slot in enumerate(slots):
                plane.view(torch.uint8)[slot // 16, slot % 16] = codes[token]


def reason(tensors, run, mappings=MAPPINGS):
    with pytest.raises(IncorrectResult) as raised:
        verify(run, tensors, mappings)
    assert tensors.cache.storage.unique().tolist() == [POISON]
    return str(raised.value)


def test_right_bytes_pass_and_the_cache_is_all_poison_again(tensors):
    verify(lambda: right(tensors), tensors, MAPPINGS)
    assert tensors.cache.storage.unique().tolist() == [POISON]


def test_the_same_call_passes_again(tensors):
    for _ in range(2):
        verify(lambda: right(tensors), tensors, MAPPINGS)


@pytest.mark.parametrize("name", ["key_cache", "value_cache"])
@pytest.mark.parametrize(
    ("mapping", "token", "head", "element"), [(0, 0, 0, 0), (1, 7, 1, 31), (2, 15, 0, 5)]
)
def test_one_wrong_bit_is_found_where_it_is(tensors, name, mapping, token, head, element):
    slot = int(tensors.slot_mappings[mapping, token])
    plane = getattr(tensors, name)
    rows, scale = (tensors.key, tensors.k_scale) if name == "key_cache" else (tensors.value, tensors.v_scale)
    size = plane.element_size()
    codes = quantize(rows, tensors.kv_cache_dtype, scale)[token, head, element * size : (element + 1) * size]
    asked = int.from_bytes(bytes(codes.tolist()), "little")
    total = MAPPINGS * 16 * 2 * 32

    def run():
        right(tensors)
        plane.view(torch.uint8)[slot // 16, slot % 16, head, element * size] ^= 1

    assert reason(tensors, run) == (
        f"{100 / total:.3g} % of the {total} elements written to {name} are wrong, the first at "
        f"token {token}, head {head}, element {element} (slot {slot}): "
        f"0x{asked ^ 1:0{2 * size}x} instead of 0x{asked:0{2 * size}x}"
    )


def test_rows_that_were_not_written_are_counted(tensors):
    def run():
        right(tensors)
        restore(tensors, 1)

    assert reason(tensors, run).startswith("33.3 % of the 3072 elements written to key_cache are wrong")


def test_an_element_of_two_wrong_bytes_counts_once(tensors):
    slot = int(tensors.slot_mappings[0, 0])
    size = tensors.key_cache.element_size()

    def run():
        right(tensors)
        tensors.key_cache.view(torch.uint8)[slot // 16, slot % 16, 0, :size] ^= 0xFF

    assert reason(tensors, run).startswith(f"{100 / 3072:.3g} % of the 3072 elements")


def test_a_wrong_value_beyond_the_mappings_that_were_asked_for_is_a_byte_outside(tensors):
    assert "a byte outside the written slots changed" in reason(tensors, lambda: right(tensors), MAPPINGS - 1)


@pytest.mark.parametrize("at", [0, GUARD_BYTES - 1, -GUARD_BYTES, -1])
def test_a_changed_guard_is_found(tensors, at):
    size = tensors.cache.storage.numel()

    def run():
        right(tensors)
        tensors.cache.storage[at] ^= 0x80

    assert reason(tensors, run) == (
        f"a byte outside the written slots changed, byte {at % size} of the {size} of the cache "
        "and its guards"
    )


def test_a_changed_slot_that_nobody_asked_for_is_found(tensors):
    taken = set(tensors.slot_mappings.flatten().tolist())
    free = next(slot for slot in range(128) if slot not in taken)

    def run():
        right(tensors)
        tensors.value_cache[free // 16, free % 16, 1, 31] = 0

    assert re.match(r"a byte outside the written slots changed, byte \d+ of", reason(tensors, run))


def test_what_a_call_raises_is_not_hidden(tensors):
    def run():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        verify(run, tensors, MAPPINGS)


class TestInPieces:
    """A real curve's rows and cache are looked at in chunks; so are these."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        # Five rows of the cache at once; the cache in pieces that its size is no multiple of.
        monkeypatch.setattr(law_of_bytes, "ROWS_BYTES", 5 * 2 * 32 * 2)
        monkeypatch.setattr(law_of_bytes, "SCAN_BYTES", 4104)

    def test_right_bytes_pass(self, tensors):
        verify(lambda: right(tensors), tensors, MAPPINGS)
        assert tensors.cache.storage.unique().tolist() == [POISON]

    @pytest.mark.parametrize(("mapping", "token"), [(0, 4), (0, 5), (1, 0), (2, 15)])
    def test_a_wrong_bit_is_found_where_it_is(self, tensors, mapping, token):
        slot = int(tensors.slot_mappings[mapping, token])

        def run():
            right(tensors)
            tensors.value_cache.view(torch.uint8)[slot // 16, slot % 16, 1, 0] ^= 1

        found = reason(tensors, run)
        assert f"the first at token {token}, head 1, element 0 (slot {slot})" in found
        assert "of the 3072 elements written to value_cache" in found

    @pytest.mark.parametrize("at", [0, 4095, -4096, -1])
    def test_a_changed_guard_is_found(self, tensors, at):
        def run():
            right(tensors)
            tensors.cache.storage[at] ^= 0x80

        assert f"byte {at % tensors.cache.storage.numel()} of" in reason(tensors, run)

    @pytest.mark.parametrize("piece", [8, 24, 4096, 1 << 20])
    def test_a_byte_is_found_wherever_a_piece_ends(self, tensors, piece, monkeypatch):
        monkeypatch.setattr(law_of_bytes, "SCAN_BYTES", piece)
        taken = set(tensors.slot_mappings.flatten().tolist())
        free = next(slot for slot in reversed(range(128)) if slot not in taken)
        tensors.key_cache.view(torch.uint8)[free // 16, free % 16, 0, 0] = 0
        at = int((tensors.cache.storage != POISON).nonzero())
        assert f"byte {at} of" in reason(tensors, lambda: right(tensors))


def test_nan_and_signed_zero_are_compared_as_bytes():
    made = composed.experiment("workload=tiny", "impl=torch", "workload.num_tokens=2", "dtype=float")
    (case,) = made.resolved("cpu").cases()
    with allocate(case, make(made.layout), torch.float32) as memory:
        poison(memory.cache)
        memory.inputs[0].fill_(float("nan"))
        memory.inputs[1].fill_(-0.0)
        memory.seal()
        tensors = build(case, memory, 1)
        posed = law.implementation("torch", "cpu").reshape_and_cache_flash(
            tensors.key, tensors.value, tensors.key_cache, tensors.value_cache, tensors.slot_mappings[0],
            "auto", tensors.k_scale, tensors.v_scale,
        )  # fmt: skip
        verify(posed, tensors, 1)

        def unsigned():
            posed()
            slots = tensors.slot_mappings[0]
            tensors.value_cache[slots // 16, slots % 16] = 0.0

        with pytest.raises(IncorrectResult, match="0x00000000 instead of 0x80000000"):
            verify(unsigned, tensors, 1)
