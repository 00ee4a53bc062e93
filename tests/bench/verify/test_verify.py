import re
from itertools import cycle

import pytest
import torch

from kvexp.bench.verify import check_run, check_timed_slots, check_untouched, restore
from kvexp.errors import IncorrectResult
from kvexp.gpu import scan
from kvexp.op.quantize import quantize
from kvexp.workload import GUARD_BYTES, INTEGERS
from tests.helpers import compose, oracle, strides, tiny_curve
from tests.helpers.strides import FIRST, MAPPINGS, TOTAL, all_poison, free_slot, point, reason, spoilt, verify

# mapping, token, head, element; in pieces, a piece ends between the tokens 4 and 5.
PLACES = [(0, 0, 0, 0), (0, 4, 1, 0), (0, 5, 1, 0), (1, 0, 1, 0), (1, 7, 1, 31), (2, 15, 0, 5)]


@pytest.mark.usefixtures("looked_at")
def test_right_bytes_pass_and_the_cache_is_all_poison_again(tensors):
    for _ in range(2):
        verify(lambda: strides.write(tensors), tensors, FIRST)
        assert all_poison(tensors.cache)


@pytest.mark.usefixtures("looked_at")
@pytest.mark.parametrize("name", ["key_cache", "value_cache"])
def test_one_wrong_bit_is_found_where_it_is(tensors, name):
    for mapping, token, head, element in PLACES:
        slot = int(tensors.slot_mappings[mapping, token])
        rows, plane, scale = strides.planes(tensors)[name == "value_cache"]
        size = plane.element_size()
        codes = quantize(rows, tensors.kv_cache_dtype, scale)[token, head, element * size :][:size]
        asked = int.from_bytes(bytes(codes.tolist()), "little")
        assert reason(tensors, spoilt(tensors, name, slot, head, element)) == (
            f"{100 / TOTAL:.3g} % of the {TOTAL} elements written to {name} are wrong, the first at "
            f"token {token}, head {head}, element {element} (slot {slot}): "
            f"0x{asked ^ 1:0{2 * size}x} instead of 0x{asked:0{2 * size}x}"
        )


def test_rows_that_were_not_written_are_counted(tensors):
    def run():
        strides.write(tensors)
        restore(tensors, 1)

    found = reason(tensors, run)
    assert float(found.partition(" %")[0]) == pytest.approx(100 / 3, rel=0.02)
    assert f"of the {TOTAL} elements written to key_cache are wrong" in found


def test_restored_slots_are_those_of_the_first_mappings_alone(tensors):
    strides.write(tensors)
    whole = tensors.cache.storage.clone()
    restore(tensors, 1)
    as_poison = torch.empty_like(whole)
    scan.poison(as_poison)
    again = {int(slot) for slot in tensors.slot_mappings[0]}
    for _, plane, _ in strides.planes(tensors):
        at = strides.addresses(tensors, plane, torch.arange(128))
        for slot in range(128):
            bytes_of = (at[slot].unsqueeze(-1) + torch.arange(plane.element_size())).flatten()
            asked = as_poison if slot in again else whole
            assert torch.equal(tensors.cache.storage[bytes_of], asked[bytes_of])


def test_an_element_of_more_than_one_wrong_byte_counts_once(tensors):
    slot, size = int(tensors.slot_mappings[0, 0]), tensors.key_cache.element_size()
    run = spoilt(tensors, "key_cache", slot, 0, 0, by=0xFF, count=size)
    assert reason(tensors, run).startswith(f"{100 / TOTAL:.3g} % of the {TOTAL} elements")


def test_a_right_value_beyond_the_mappings_that_were_asked_for_is_a_byte_outside(tensors):
    found = reason(tensors, lambda: strides.write(tensors), FIRST[1:])
    assert "a byte outside the written slots changed" in found


@pytest.mark.usefixtures("looked_at")
def test_a_changed_guard_is_found(tensors):
    size = tensors.cache.storage.numel()
    for at in (0, GUARD_BYTES - 1, -GUARD_BYTES, -1):

        def run(at=at):
            strides.write(tensors)
            tensors.cache.storage[at] ^= 0x80

        assert reason(tensors, run) == (
            f"a byte outside the written slots changed, byte {at % size} of the {size} of the cache "
            "and its guards"
        )


def test_a_changed_slot_that_nobody_asked_for_is_found(tensors):
    run = spoilt(tensors, "value_cache", free_slot(tensors), 1, 31)
    assert re.match(r"a byte outside the written slots changed, byte \d+ of", reason(tensors, run))


@pytest.mark.parametrize(
    ("layout", "words"), [*zip(compose.layouts(), cycle([1, 3, 512, 1 << 17]), strict=False)]
)
def test_a_byte_is_found_wherever_a_piece_ends(layout, words, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK_WORDS", words)
    with point(layout=layout) as tensors:
        run = spoilt(tensors, "key_cache", free_slot(tensors), 0, 0)
        at = int(strides.addresses(tensors, tensors.key_cache, torch.tensor([free_slot(tensors)]))[0, 0, 0])
        assert f"byte {at} of" in reason(tensors, run)


@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_byte_of_another_layer_is_found(layout, num_layers):
    with point(layout=layout, num_layers=num_layers) as tensors:
        size = tensors.key_cache.element_size()
        first, second = (
            tensors.cache.layout.planes(tensors.case, size, layer).key.offset for layer in (0, 1)
        )
        layer = (second - first) * size
        slot = torch.tensor([int(tensors.slot_mappings[1, 3])])
        at = int(strides.addresses(tensors, tensors.key_cache, slot)[0, 1, 7])
        for neighbour in range(-(num_layers // 2), num_layers - num_layers // 2):

            def run(byte=at + neighbour * layer):
                strides.write(tensors)
                tensors.cache.storage[byte] ^= 1

            found = reason(tensors, run)
            assert found.startswith("a byte outside" if neighbour else f"{100 / TOTAL:.3g} %")
            assert neighbour == 0 or f"byte {at + neighbour * layer} of" in found


def test_an_element_that_nobody_wrote_is_the_poison_of_its_place(tensors):
    expected = torch.empty_like(tensors.cache.storage)
    scan.poison(expected)
    slot, size = tensors.slot_mappings[0, :1], tensors.key_cache.element_size()
    at = int(strides.addresses(tensors, tensors.key_cache, slot)[0, 0, 0])
    code = bytes(expected[at : at + size].tolist())[::-1].hex()
    found = reason(tensors, lambda: None)
    assert f"token 0, head 0, element 0 (slot {int(slot)}): 0x{code} instead of" in found


@pytest.mark.parametrize("swapped", [True, False])
def test_poison_that_was_written_over_poison_is_found(layout, swapped):
    """Blocks that nobody was to write have traded places, or one is a copy of another."""
    with point(layout=layout, slots="contiguous") as tensors:
        blocks, block_size = tensors.value_cache, tensors.case.block_size
        taken = {int(slot) // block_size for slot in tensors.slot_mappings.flatten()}
        two = [block for block in range(tensors.case.num_blocks) if block not in taken][:2]

        def run():
            strides.write(tensors)
            blocks[two] = blocks[two].flip(0) if swapped else blocks[two[1]].clone()

        slots = torch.arange(two[0] * block_size, (two[0] + 1) * block_size)
        at = int(strides.addresses(tensors, blocks, slots).min())
        found = re.match(r"a byte outside the written slots changed, byte (\d+) of", reason(tensors, run))
        # Words at such a distance may have bytes in common.
        assert at <= int(found[1]) < at + scan.WORD


@pytest.mark.parametrize("name", ["key", "value", "slot_mappings", "k_scale", "v_scale"])
def test_a_changed_input_is_found(name):
    with point(kv_cache_dtype="fp8_e4m3", scale="per_head", extra_tokens=1) as tensors:

        def run():
            strides.write(tensors)
            getattr(tensors, name)[-1] += 1

        assert reason(tensors, run) == "the call changed its inputs: keys, values, slots or scales"
        strides.write(tensors)
        with pytest.raises(IncorrectResult, match="not while it was timed: the call changed its inputs"):
            check_timed_slots(tensors, FIRST)


def test_a_changed_input_of_another_point_is_found_where_it_is_looked_for():
    with tiny_curve.memory(num_tokens=(3, 50)) as memory:
        scan.poison(memory.cache.storage)
        tensors = memory.build(tiny_curve.case(num_tokens=3), 1)

        def run():
            strides.write(tensors)
            memory.inputs[-1] += 1

        check_run(run, tensors, [0])
        with pytest.raises(IncorrectResult, match="the call changed its inputs"):
            check_run(lambda: None, tensors, [0], others=True)


def test_what_the_timed_calls_left_is_looked_at(tensors):
    strides.write(tensors)
    check_timed_slots(tensors, FIRST)
    slots = tensors.written_slots(1).reshape(-1)[:1]
    plane = tensors.value_cache
    tensors.cache.layout.scatter(plane.view(INTEGERS[plane.itemsize]), slots, 0)
    with pytest.raises(IncorrectResult, match=r"not while it was timed: .* written to value_cache are wrong"):
        check_timed_slots(tensors, FIRST)
    assert all_poison(tensors.cache)


def test_an_audit_looks_at_mappings_that_are_drawn_anew_as_many_as_their_bytes_allow():
    with point() as tensors:
        bytes_each = 16 * 2 * 2 * 32 * 2
        spoilt_one = spoilt(tensors, "key_cache", int(tensors.slot_mappings[1, 3]), 0, 0)

        def found(most_bytes):
            spoilt_one()
            try:
                check_timed_slots(tensors, FIRST, most_bytes)
            except IncorrectResult:
                return True
            return False

        for few in (0, bytes_each, 2 * bytes_each - 1, 2 * bytes_each):
            assert {found(few) for _ in range(100)} == {True, False}
        for all_of_them in (3 * bytes_each, None):
            assert {found(all_of_them) for _ in range(20)} == {True}
        strides.write(tensors)
        for _ in range(100):
            check_timed_slots(tensors, FIRST, bytes_each)


def test_a_run_is_checked_whatever_its_slots_held_and_leaves_them_as_they_are(tensors):
    for _ in range(2):
        check_run(lambda: strides.write(tensors), tensors, FIRST)
        check_timed_slots(tensors, FIRST)


def test_what_the_first_look_leaves_out_the_last_one_finds(tensors):
    def run():
        strides.write(tensors)
        tensors.cache.storage[-1] = 0

    check_run(run, tensors, FIRST)
    restore(tensors, MAPPINGS)
    with pytest.raises(IncorrectResult, match="a byte outside the written slots changed"):
        check_untouched(tensors.cache.storage)()
    assert all_poison(tensors.cache)


def test_what_a_call_raises_is_not_hidden():
    def run():
        raise ZeroDivisionError

    with point() as tensors, pytest.raises(ZeroDivisionError):
        verify(run, tensors, FIRST)


def test_nan_and_signed_zero_are_compared_as_bytes():
    chosen = {"num_tokens": 2, "dtype": "float"}
    with tiny_curve.memory(**chosen) as memory:
        scan.poison(memory.cache.storage)
        tensors = memory.build(tiny_curve.case(**chosen), 1)
        tensors.key.fill_(float("nan"))
        tensors.value.fill_(-0.0)
        tensors.seal()
        posed = oracle.implementation("torch", "cpu").reshape_and_cache_flash(
            tensors.key, tensors.value, tensors.key_cache, tensors.value_cache, tensors.slot_mappings[0],
            "auto", tensors.k_scale, tensors.v_scale,
        )  # fmt: skip
        verify(posed, tensors, [0])

        def unsigned():
            posed()
            slots = tensors.slot_mappings[0]
            tensors.value_cache[slots // 16, slots % 16] = 0.0

        with pytest.raises(IncorrectResult, match="0x00000000 instead of 0x80000000"):
            verify(unsigned, tensors, [0])
