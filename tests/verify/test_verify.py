import re

import pytest
import torch

from kvexp.errors import IncorrectResult
from kvexp.quantize import quantize
from kvexp.verify import POISON, _items, poison, restore, verify, verify_again, verify_slots
from kvexp.workload import GUARD_BYTES, build
from tests import law, places, tiny
from tests.places import MAPPINGS, TOTAL, free_slot, point, reason, spoilt


def test_right_bytes_pass_and_the_cache_is_all_poison_again(tensors):
    for _ in range(2):
        verify(lambda: places.write(tensors), tensors, MAPPINGS)
        assert tensors.cache.storage.unique().tolist() == [POISON]


@pytest.mark.parametrize("name", ["key_cache", "value_cache"])
def test_one_wrong_bit_is_found_where_it_is(tensors, name):
    for mapping, token, head, element in [(0, 0, 0, 0), (1, 7, 1, 31), (2, 15, 0, 5)]:
        slot = int(tensors.slot_mappings[mapping, token])
        rows, plane, scale = places.planes(tensors)[name == "value_cache"]
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
        places.write(tensors)
        restore(tensors, 1)

    found = reason(tensors, run)
    assert float(found.partition(" %")[0]) == pytest.approx(100 / 3, rel=0.02)
    assert f"of the {TOTAL} elements written to key_cache are wrong" in found


def test_restored_slots_are_those_of_the_first_mappings_alone(tensors):
    places.write(tensors)
    whole = tensors.cache.storage.clone()
    restore(tensors, 1)
    again = {int(slot) for slot in tensors.slot_mappings[0]}
    for _, plane, _ in places.planes(tensors):
        at = places.addresses(tensors, plane, torch.arange(128))
        for slot in range(128):
            bytes_of = (at[slot].unsqueeze(-1) + torch.arange(plane.element_size())).flatten()
            found = tensors.cache.storage[bytes_of]
            assert torch.equal(found, torch.full_like(found, POISON) if slot in again else whole[bytes_of])


def test_an_element_of_more_than_one_wrong_byte_counts_once(tensors):
    slot, size = int(tensors.slot_mappings[0, 0]), tensors.key_cache.element_size()
    run = spoilt(tensors, "key_cache", slot, 0, 0, by=0xFF, count=size)
    assert reason(tensors, run).startswith(f"{100 / TOTAL:.3g} % of the {TOTAL} elements")


def test_a_right_value_beyond_the_mappings_that_were_asked_for_is_a_byte_outside(tensors):
    found = reason(tensors, lambda: places.write(tensors), MAPPINGS - 1)
    assert "a byte outside the written slots changed" in found


def test_a_changed_guard_is_found(tensors):
    size = tensors.cache.storage.numel()
    for at in (0, GUARD_BYTES - 1, -GUARD_BYTES, -1):

        def run(at=at):
            places.write(tensors)
            tensors.cache.storage[at] ^= 0x80

        assert reason(tensors, run) == (
            f"a byte outside the written slots changed, byte {at % size} of the {size} of the cache "
            "and its guards"
        )


def test_a_changed_slot_that_nobody_asked_for_is_found(tensors):
    run = spoilt(tensors, "value_cache", free_slot(tensors), 1, 31)
    assert re.match(r"a byte outside the written slots changed, byte \d+ of", reason(tensors, run))


@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_byte_of_another_layer_is_found(layout, num_layers):
    with point(layout=layout, num_layers=num_layers) as tensors:
        size = tensors.key_cache.element_size()
        first, second = (tensors.cache.layout.planes(tensors.case, size, layer) for layer in (0, 1))
        layer = (second.key.offset - first.key.offset) * size
        slot = torch.tensor([int(tensors.slot_mappings[1, 3])])
        at = int(places.addresses(tensors, tensors.key_cache, slot)[0, 1, 7])
        for neighbour in range(-(num_layers // 2), num_layers - num_layers // 2):

            def run(byte=at + neighbour * layer):
                places.write(tensors)
                tensors.cache.storage[byte] ^= 1

            found = reason(tensors, run)
            assert found.startswith("a byte outside" if neighbour else f"{100 / TOTAL:.3g} %")
            assert neighbour == 0 or f"byte {at + neighbour * layer} of" in found


@pytest.mark.parametrize("name", ["key", "value", "slot_mappings", "k_scale", "v_scale"])
def test_a_changed_input_is_found_and_made_anew(name):
    with point(kv_cache_dtype="fp8_e4m3", scale="per_head", extra_tokens=1) as tensors:
        before = getattr(tensors, name).clone()

        def run():
            places.write(tensors)
            getattr(tensors, name)[-1] += 1

        assert reason(tensors, run) == "the call changed its inputs: keys, values, slots or scales"
        assert torch.equal(getattr(tensors, name), before)
        verify(lambda: places.write(tensors), tensors, MAPPINGS)


def test_what_the_timed_calls_left_is_looked_at(tensors):
    places.write(tensors)
    verify_again(lambda: places.write(tensors), tensors, MAPPINGS)()
    places.write(tensors)
    tensors.cache.storage[-1] ^= 1
    with pytest.raises(IncorrectResult, match="a byte outside the written slots changed"):
        verify_again(lambda: places.write(tensors), tensors, MAPPINGS)()
    assert tensors.cache.storage.unique().tolist() == [POISON]


def test_what_the_first_look_leaves_out_the_last_one_finds(tensors):
    def run():
        places.write(tensors)
        tensors.cache.storage[-1] = 0

    verify_slots(run, tensors, MAPPINGS)
    places.write(tensors)
    with pytest.raises(IncorrectResult, match="a byte outside the written slots changed"):
        verify_again(lambda: places.write(tensors), tensors, MAPPINGS)()


def test_wrong_rows_that_the_timed_calls_left_are_found_though_the_last_run_is_right(tensors):
    places.write(tensors)
    slots = tensors.written_slots(1).reshape(-1)[:1]
    verify_again(lambda: places.write(tensors), tensors, MAPPINGS)()
    places.write(tensors)
    tensors.cache.layout.scatter(_items(tensors.value_cache), slots, 0)
    with pytest.raises(IncorrectResult, match=r"not while it was timed: .* written to value_cache are wrong"):
        verify_again(lambda: places.write(tensors), tensors, MAPPINGS)()


def test_what_a_call_raises_is_not_hidden():
    def run():
        raise ZeroDivisionError

    with point() as tensors, pytest.raises(ZeroDivisionError):
        verify(run, tensors, MAPPINGS)


def test_nan_and_signed_zero_are_compared_as_bytes():
    chosen = {"num_tokens": 2, "dtype": "float"}
    with tiny.memory(**chosen) as memory:
        poison(memory.cache)
        memory.rows.key.fill_(float("nan"))
        memory.rows.value.fill_(-0.0)
        memory.seal()
        tensors = build(tiny.case(**chosen), memory, 1)
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
