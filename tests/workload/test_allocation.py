"""The memory of a curve and the views of a point: the cache between its guards, slots, checksums."""

import pytest
import torch

from kvexp.case import NO_SLOT
from kvexp.gpu import scan
from kvexp.workload import GUARD_BYTES, TIMED
from tests.helpers import compose, tiny_curve

LAYOUTS = compose.layouts()


class TestSlotMappings:
    def test_that_are_contiguous_follow_one_another(self):
        with tiny_curve.memory(slots="contiguous") as held:
            tensors = held.build(tiny_curve.case(slots="contiguous", num_tokens=3), 3)
            tensors.redraw(TIMED)
            assert tensors.slot_mappings.tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]

    @pytest.mark.parametrize("padding", [0.0, 0.3])
    @pytest.mark.parametrize(("tokens", "mappings"), [(1, 64), (3, 32), (16, 8), (50, 2)])
    def test_share_no_slot_and_begin_aligned(self, tokens, mappings, padding):
        with tiny_curve.memory() as held:
            point = tiny_curve.case(num_tokens=tokens, padding=padding)
            assert held.op.count_places(point) == mappings
            tensors = held.build(point, mappings)
            assert tensors.slot_mappings.shape == (mappings, tokens)
            written = tensors.written_slots(mappings)
            assert written.unique().numel() == written.numel() == mappings * point.written_tokens
            assert all(slots.is_contiguous() for slots in tensors.slot_mappings)
            assert all(slots.data_ptr() % 16 == 0 for slots in tensors.slot_mappings)


@pytest.mark.parametrize("padding_at", ["end", "scattered"])
class TestPaddedMappings:
    def padded(self, held, padding_at, mappings=2, padding=0.4):
        case = tiny_curve.case(num_tokens=10, padding=padding, padding_at=padding_at)
        return held.build(case, mappings)

    def test_are_the_curves_slots_but_where_padding_is(self, padding_at):
        with tiny_curve.memory() as held:
            tensors = self.padded(held, padding_at)
            bare = held.build(tiny_curve.case(num_tokens=10), 2)
            kept = tensors.unpadded.tolist()
            others = [token for token in range(10) if token not in kept]
            assert len(kept) == 6
            assert (tensors.slot_mappings[:, others] == NO_SLOT).all()
            assert torch.equal(tensors.slot_mappings[:, kept], bare.slot_mappings[:, kept])
            assert torch.equal(tensors.written_slots(2), tensors.slot_mappings[:, kept])
            assert tensors.written_slots(1).shape == (1, 6)

    def test_changes_anywhere_are_noticed(self, padding_at):
        with tiny_curve.memory() as held:
            tensors = self.padded(held, padding_at)
            assert tensors.unchanged()
            for place in range(tensors.slot_mappings.numel()):
                before = int(tensors.slot_mappings.flatten()[place])
                tensors.slot_mappings[place // 10, place % 10] = before + 1
                assert not tensors.unchanged()
                assert held.unchanged()
                tensors.slot_mappings[place // 10, place % 10] = before
            assert tensors.unchanged()

    def test_leave_the_curves_slots_alone(self, padding_at):
        with tiny_curve.memory() as held:
            self.padded(held, padding_at)
            assert (held.slots >= 0).all()
            assert held.unchanged()


def test_a_point_without_padding_sees_its_changed_slots_too():
    with tiny_curve.memory() as held:
        tensors = held.build(tiny_curve.case(num_tokens=3), 1)
        tensors.slot_mappings[0, 1] += 1
        assert not tensors.unchanged()


class TestTheSeed:
    def drawn(self, **chosen):
        with tiny_curve.memory(**chosen) as held:
            return held.slots.clone(), held.inputs.clone().view(torch.uint8), held.scales.clone()

    @pytest.mark.parametrize("dtype", ["bfloat16", "fp8_e5m2"])
    def test_makes_the_inputs_anew(self, dtype):
        with tiny_curve.memory(dtype=dtype, kv_cache_dtype="fp8_e5m2") as held:
            items = held.inputs.view(torch.uint8)
            before = items.clone(), held.slots.clone(), held.scales.clone()
            items.zero_(), held.slots.zero_(), held.scales.zero_()
            assert not held.unchanged()
            held.fill()
            assert held.unchanged()
            now = items, held.slots, held.scales
            assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))

    def test_draws_the_same_again(self):
        first, again = self.drawn(seed=3), self.drawn(seed=3)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_draws_otherwise_when_it_is_another(self):
        first, other = self.drawn(seed=3), self.drawn(seed=4)
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))

    def test_draws_the_same_for_every_layout(self):
        drawn = [self.drawn(layout=layout, num_layers=3) for layout in LAYOUTS]
        assert all(torch.equal(drawn[0][i], other[i]) for other in drawn[1:] for i in range(3))


class TestTheCache:
    @pytest.mark.parametrize("kv_cache_dtype", compose.formats())
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_has_the_items_of_its_type_between_guards(self, layout, kv_cache_dtype):
        for dtype in compose.options("dtype"):
            made = tiny_curve.curve(dtype=dtype)
            item = tiny_curve.source(made) if kv_cache_dtype == "auto" else torch.uint8
            with tiny_curve.memory(layout=layout, dtype=dtype, kv_cache_dtype=kv_cache_dtype) as held:
                self.holds(held.cache, item)

    def holds(self, cache, item):
        assert cache.key.dtype == cache.value.dtype == item
        assert cache.key.numel() == cache.value.numel() == 8 * 16 * 2 * 32
        assert cache.storage.numel() == 2 * 8 * 16 * 2 * 32 * item.itemsize + 2 * GUARD_BYTES
        scan.poison(cache.storage)
        guards = cache.storage[:GUARD_BYTES].clone(), cache.storage[-GUARD_BYTES:].clone()
        for plane, byte in ((cache.key, 1), (cache.value, 2)):
            plane.copy_(torch.full(plane.shape, byte, dtype=torch.uint8).repeat_interleave(
                item.itemsize, -1).view(item).view(plane.shape))  # fmt: skip
        items = cache.storage[GUARD_BYTES:-GUARD_BYTES]
        assert [int((items == byte).sum()) for byte in (1, 2)] == [items.numel() // 2] * 2
        assert torch.equal(cache.storage[:GUARD_BYTES], guards[0])
        assert torch.equal(cache.storage[-GUARD_BYTES:], guards[1])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_is_one_plane_where_its_layout_is_packed(self, layout):
        with tiny_curve.memory(layout=layout, head_size_v=16) as held:
            cache = held.cache
            if not cache.layout.packed:
                assert cache.packed is None
                return
            assert cache.packed.shape == (8, 16, 2, 48)
            for plane, part in ((cache.key, cache.packed[..., :32]), (cache.value, cache.packed[..., 32:])):
                assert plane.data_ptr() == part.data_ptr()
                assert (plane.shape, plane.stride()) == (part.shape, part.stride())

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("num_layers", [2, 3, 4])
    def test_holds_all_layers_and_gives_the_one_in_the_middle(self, layout, num_layers):
        with tiny_curve.memory(layout=layout, num_layers=num_layers) as held:
            cache = held.cache
            planes = cache.layout.planes(held.largest, 2, num_layers // 2)
            assert cache.storage.numel() == 2 * GUARD_BYTES + num_layers * 8 * 16 * 2 * (32 + 32) * 2
            for found, plane in ((cache.key, planes.key), (cache.value, planes.value)):
                assert (found.shape, found.stride()) == (plane.shape, plane.strides)
                assert found.storage_offset() == GUARD_BYTES // 2 + plane.offset

    @pytest.mark.parametrize("num_layers", [1, 3])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_planes_start_at_addresses_of_sixteen_bytes(self, layout, num_layers):
        with tiny_curve.memory(layout=layout, num_layers=num_layers) as held:
            assert held.cache.key.data_ptr() % 16 == held.cache.value.data_ptr() % 16 == 0
