"""Draws: keys, values, slots and scales change in place, and each draw is always the same."""

from itertools import product

import pytest
import torch

from kvexp.case import NO_SLOT
from kvexp.workload import BOUND, LAST, TIMED
from tests.helpers import compose, oracle, tiny_curve

DRAWS = (TIMED, BOUND, LAST)


def seen(tensors):
    """Copies of all that a call reads."""
    rows = tensors.rows.flat.view(torch.uint8)
    return [t.clone() for t in (rows, tensors.slot_mappings, tensors.k_scale, tensors.v_scale)]


def alike(one, other):
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("dtype", compose.options("dtype"))
@pytest.mark.parametrize("slots", compose.words("slots"))
@pytest.mark.parametrize(("padding", "padding_at"), [(0.0, "end"), (0.4, "end"), (0.4, "scattered")])
def test_a_draw_is_always_the_same_and_unlike_the_others(slots, dtype, padding, padding_at):
    kv_cache_dtype = dtype if dtype.startswith("fp8") else "fp8"
    chosen = {"slots": slots, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "num_tokens": 8}
    chosen |= {"padding": padding, "padding_at": padding_at}
    with tiny_curve.memory(**chosen) as memory:
        tensors = memory.build(tiny_curve.case(**chosen), 2)
        drawn = {}
        for draw in (*DRAWS, *reversed(DRAWS), LAST, TIMED):
            tensors.redraw(draw)
            assert alike(drawn.setdefault(draw, seen(tensors)), seen(tensors)) == [True] * 4
        # Rows of eight bits are stored as they are, whatever their scales: those stay one.
        rescaled = not dtype.startswith("fp8")
        for one, other in ((TIMED, BOUND), (TIMED, LAST), (BOUND, LAST)):
            rows, mappings, *scales = alike(drawn[one], drawn[other])
            assert (rows, mappings) == (False, False)
            assert scales == [not rescaled] * 2


@pytest.mark.parametrize("slots", compose.words("slots"))
@pytest.mark.parametrize(("num_blocks", "block_size"), [(8, 16), (1, 64), (64, 1), (7, 5), (2, 16)])
def test_slots_are_others_in_each_draw_and_each_is_there_once(slots, num_blocks, block_size):
    chosen = {"slots": slots, "num_blocks": num_blocks, "block_size": block_size}
    chosen["num_tokens"] = num_blocks if slots == "decode" else num_blocks * block_size
    with tiny_curve.memory(**chosen) as memory:
        tensors = memory.build(tiny_curve.case(**chosen), 1)
        for draw in DRAWS:
            tensors.redraw(draw)
            found = tensors.slot_mappings[0]
            assert len(found.unique()) == chosen["num_tokens"]
        tensors.redraw(TIMED)
        timed = tensors.slot_mappings.clone()
        for draw in (BOUND, LAST):
            tensors.redraw(draw)
            assert not torch.equal(tensors.slot_mappings, timed)


@pytest.mark.parametrize("slots", ["contiguous", "reversed"])
@pytest.mark.parametrize("draw", [BOUND, LAST])
def test_slots_in_a_row_begin_at_another_block_and_stay_in_a_row(slots, draw):
    with tiny_curve.memory(slots=slots, num_tokens=128) as memory:
        tensors = memory.build(tiny_curve.case(slots=slots, num_tokens=128), 1)
        tensors.redraw(TIMED)
        first = tensors.slot_mappings[0].tolist()
        assert first == (list(range(128)) if slots == "contiguous" else list(range(127, -1, -1)))
        tensors.redraw(draw)
        found = tensors.slot_mappings[0].tolist()
        moved = (found[0] - first[0]) % 128
        assert moved % 16 == 0
        assert moved != 0
        assert found == [(slot + moved) % 128 for slot in first]


def test_slots_in_a_row_of_one_block_begin_at_another_slot():
    chosen = {"slots": "contiguous", "num_blocks": 1, "block_size": 64, "num_tokens": 8}
    with tiny_curve.memory(**chosen) as memory:
        tensors = memory.build(tiny_curve.case(**chosen), 1)
        for draw in (BOUND, LAST):
            tensors.redraw(draw)
            begin = int(tensors.slot_mappings[0, 0])
            assert begin != 0
            assert tensors.slot_mappings[0].tolist() == [(begin + i) % 64 for i in range(8)]


@pytest.mark.parametrize("padding_at", ["end", "scattered"])
def test_padding_stays_where_it_was(padding_at):
    chosen = {"padding": 0.4, "padding_at": padding_at, "num_tokens": 10}
    with tiny_curve.memory(**chosen) as memory:
        tensors = memory.build(tiny_curve.case(**chosen), 3)
        padded = tensors.slot_mappings == NO_SLOT
        assert int(padded.sum()) == 3 * 4
        for draw in DRAWS:
            tensors.redraw(draw)
            assert torch.equal(tensors.slot_mappings == NO_SLOT, padded)
            assert (tensors.written_slots(3) >= 0).all()
            assert len(tensors.written_slots(3).unique()) == 3 * 6


@pytest.mark.parametrize("padding", [0.0, 0.4])
def test_data_change_in_place_and_no_version_counter_does(padding):
    """Tensors stay where they are, and of the same version: as if a kernel had written them."""
    chosen = {"num_tokens": 10, "padding": padding, "kv_cache_dtype": "fp8", "scale": "per_head"}
    with tiny_curve.memory(**chosen) as memory:
        tensors = memory.build(tiny_curve.case(**chosen), 2, 2)
        window = tensors.window(1)
        given = (tensors.key, tensors.value, window.key, window.value)
        given += (tensors.slot_mappings[0], tensors.slot_mappings[1], tensors.k_scale, tensors.v_scale)
        before = [(t.data_ptr(), t._version, t.clone()) for t in given]
        tensors.redraw(TIMED)
        for tensor, (address, version, held) in zip(given, before, strict=True):
            assert (tensor.data_ptr(), tensor._version) == (address, version)
            assert not torch.equal(tensor, held)


def test_a_draw_seals_the_inputs():
    with tiny_curve.memory(kv_cache_dtype="fp8") as memory:
        tensors = memory.build(tiny_curve.case(num_tokens=3, kv_cache_dtype="fp8"), 2)
        for draw in DRAWS:
            tensors.redraw(draw)
            assert tensors.unchanged(others=True)
        memory.inputs[-1] = 7
        assert tensors.unchanged()
        assert not tensors.unchanged(others=True)
        tensors.redraw(TIMED)
        assert not tensors.unchanged(others=True)


@pytest.mark.parametrize("scale", ["per_tensor", "per_head"])
@pytest.mark.parametrize("dtype", oracle.WIDE)
def test_scales_follow_the_point_s_own_rows(dtype, scale):
    chosen = {"dtype": dtype, "kv_cache_dtype": "fp8", "scale": scale}
    with tiny_curve.memory(**chosen) as memory:
        tensors = memory.build(tiny_curve.case(**chosen, num_tokens=3), 1, 2)
        tensors.redraw(LAST)
        over = (0, 2) if scale == "per_head" else (0, 1, 2)
        for rows, found in ((tensors.rows.key, tensors.k_scale), (tensors.rows.value, tensors.v_scale)):
            assert len(rows) == 4
            assert torch.equal(found, rows.float().abs().amax(over) / 64)


@pytest.mark.parametrize("rows", compose.words("rows"))
@pytest.mark.parametrize("dtype", compose.options("dtype"))
def test_timed_data_depend_only_on_the_point(rows, dtype):
    """Not on the curve's other points, nor on what was drawn before."""
    kv_cache_dtype = dtype if dtype.startswith("fp8") else "fp8"
    chosen = {"rows": rows, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "num_query_heads": 3}
    for heads, (tokens, others) in product((1, 3), ((1, (50,)), (3, (1, 7, 128)), (50, (128,)))):
        sizes = {**chosen, "num_heads": heads, "head_size": 48}
        found = []
        for curve in ((tokens,), (tokens, *others)):
            with tiny_curve.memory(**sizes, num_tokens=curve) as memory:
                case = tiny_curve.case(**sizes, num_tokens=tokens)
                tensors = memory.build(case, 1, 2)
                if len(curve) > 1:
                    memory.build(tiny_curve.case(**sizes, num_tokens=others[-1]), 1).redraw(LAST)
                tensors.redraw(TIMED)
                found.append(seen(tensors))
        assert alike(*found) == [True] * 4
