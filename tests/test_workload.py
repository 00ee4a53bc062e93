import pytest
import torch

from kvexp import workload
from kvexp.errors import Unsupported
from kvexp.impl import make
from kvexp.verify import poison
from kvexp.workload import GUARD_BYTES, allocate, build, check_slots, checksum
from tests import composed, law

LAYOUTS = {name: make(composed.choice("layout", name)) for name in composed.options("layout")}


def case(*overrides, index=-1):
    made = composed.experiment("workload=tiny", "impl=torch", "device=cpu", *overrides)
    return list(made.resolved("cpu").cases())[index]


def memory(*overrides, layout="NHD", source=torch.bfloat16):
    return allocate(case(*overrides), LAYOUTS[layout], source)


class TestSlots:
    @pytest.mark.parametrize("slots", ["random", "contiguous"])
    def test_are_every_slot_once(self, slots):
        with memory(f"workload.slots={slots}") as held:
            assert held.slots.dtype == torch.int64
            assert sorted(held.slots.tolist()) == list(range(128))

    def test_that_are_contiguous_follow_one_another(self):
        with memory("workload.slots=contiguous") as held:
            tensors = build(case("workload.slots=contiguous", index=1), held, 3)
            assert tensors.slot_mappings.tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]

    def test_that_are_random_do_not(self):
        with memory() as held:
            assert held.slots.tolist() != list(range(128))

    @pytest.mark.parametrize(("tokens", "mappings"), [(1, 64), (3, 32), (16, 8), (50, 2)])
    def test_of_different_calls_are_different(self, tokens, mappings):
        with memory() as held:
            point = case(f"workload.num_tokens={tokens}")
            assert point.mappings == mappings
            tensors = build(point, held, mappings)
            assert tensors.slot_mappings.shape == (mappings, tokens)
            assert tensors.slot_mappings.unique().numel() == mappings * tokens
            assert all(slots.is_contiguous() for slots in tensors.slot_mappings)
            assert all(slots.data_ptr() % 16 == held.slots.data_ptr() % 16 for slots in tensors.slot_mappings)

    def test_that_are_too_few_are_named(self):
        with pytest.raises(Unsupported) as raised:
            check_slots(case("workload.num_tokens=129"))
        assert str(raised.value) == "num_tokens 129 exceeds the 128 slots of the cache (8 blocks of 16)"


class TestAChecksum:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64])
    def test_changes_with_any_byte(self, dtype):
        data = torch.arange(13).to(dtype)
        before = checksum(data)
        for byte in range(data.numel() * data.itemsize):
            data.view(torch.uint8)[byte] ^= 0x40
            assert checksum(data) != before
            data.view(torch.uint8)[byte] ^= 0x40
        assert checksum(data) == before

    def test_is_of_less_than_a_word_too(self):
        assert checksum(torch.ones(2, dtype=torch.float16)) != checksum(torch.zeros(2, dtype=torch.float16))

    def test_changes_when_words_trade_places(self):
        assert checksum(torch.tensor([1, 2, 3])) != checksum(torch.tensor([2, 1, 3]))


class TestTheSeed:
    def test_makes_the_inputs_anew(self):
        with memory() as held:
            before = held.inputs.clone(), held.slots.clone(), held.scales.clone()
            held.inputs.zero_(), held.slots.zero_(), held.scales.zero_()
            assert not held.unchanged()
            held.fill()
            assert held.unchanged()
            now = held.inputs, held.slots, held.scales
            assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))

    def drawn(self, *overrides):
        with memory(*overrides) as held:
            return held.slots.clone(), held.inputs.clone()

    def test_draws_the_same_again(self):
        first, again = self.drawn("workload.seed=3"), self.drawn("workload.seed=3")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_draws_otherwise_when_it_is_another(self):
        first, other = self.drawn("workload.seed=3"), self.drawn("workload.seed=4")
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))

    def test_draws_the_same_for_every_layout(self):
        drawn = []
        for layout in LAYOUTS:
            with memory(layout=layout) as held:
                drawn.append((held.slots.clone(), held.inputs.clone()))
        assert all(torch.equal(drawn[0][i], other[i]) for other in drawn[1:] for i in (0, 1))


class TestTheCache:
    @pytest.mark.parametrize("kv_cache_dtype", composed.options("kv_cache_dtype"))
    @pytest.mark.parametrize("dtype", composed.options("dtype"))
    @pytest.mark.parametrize("layout", list(LAYOUTS))
    def test_has_the_items_of_its_type_between_guards(self, layout, dtype, kv_cache_dtype):
        source = law.DTYPES[dtype]
        chosen = (f"layout={layout}", f"dtype={dtype}", f"kv_cache_dtype={kv_cache_dtype}")
        with memory(*chosen, layout=layout, source=source) as held:
            cache = held.cache
            item = source if kv_cache_dtype == "auto" else torch.uint8
            assert cache.key.dtype == cache.value.dtype == item
            assert cache.key.shape == cache.value.shape == (8, 16, 2, 32)
            assert cache.key.stride() == cache.value.stride()
            assert cache.storage.numel() == 2 * 8 * 16 * 2 * 32 * item.itemsize + 2 * GUARD_BYTES
            poison(cache)
            cache.key.view(torch.uint8).fill_(1)
            cache.value.view(torch.uint8).fill_(2)
            items = cache.storage[GUARD_BYTES:-GUARD_BYTES]
            assert [int((items == byte).sum()) for byte in (1, 2)] == [items.numel() // 2] * 2
            assert cache.storage[:GUARD_BYTES].unique().tolist() == [0xA5]
            assert cache.storage[-GUARD_BYTES:].unique().tolist() == [0xA5]

    def test_rows_start_at_addresses_of_sixteen_bytes(self):
        with memory() as held:
            assert held.cache.key.data_ptr() % 16 == held.cache.value.data_ptr() % 16 == 0


class TestInputs:
    def test_of_a_point_are_the_first_rows_of_the_curve_s(self):
        with memory() as held:
            one, most = (build(case(index=i), held, 1) for i in (0, -1))
            assert one.key.shape == (1, 2, 32)
            assert most.value.shape == (50, 2, 32)
            assert torch.equal(one.value[0], most.value[0])
            assert one.key.data_ptr() == most.key.data_ptr()

    def test_are_normal_numbers_keys_unlike_values(self):
        with memory() as held:
            assert abs(float(held.inputs.float().std()) - 1) < 0.1
            assert not torch.equal(held.inputs[0], held.inputs[1])

    @pytest.mark.parametrize("dtype", composed.options("dtype"))
    def test_have_scales_that_put_the_largest_at_64(self, dtype):
        with memory(source=law.DTYPES[dtype]) as held:
            largest = held.inputs.abs().amax(dim=(1, 2, 3)).float()
            assert torch.equal(held.scales, largest / 64)
            assert held.scales.dtype == torch.float32
            tensors = build(case(), held, 1)
            assert (tensors.k_scale, tensors.v_scale) == tuple(held.scales)

    def test_are_no_more_than_the_slots(self):
        with memory("workload.num_tokens=[1,100000]") as held:
            assert held.inputs.shape == (2, 128, 2, 32)


class TestTheMemory:
    def test_that_is_needed_counts_cache_inputs_slots_and_work(self, monkeypatch):
        rows = 1000 * 16 * 2 * 32 * 2 * 2
        slots = 1000 * 16 * 32
        inputs = 50 * 2 * (32 + 32) * 2
        needed = rows + slots + inputs + workload.WORKING_BYTES
        monkeypatch.setattr(workload, "_free_bytes", lambda device: needed)
        with memory("workload.num_blocks=1000"):
            pass
        monkeypatch.setattr(workload, "_free_bytes", lambda device: needed - 1)
        with pytest.raises(Unsupported) as raised, memory("workload.num_blocks=1000"):
            pass
        assert str(raised.value) == (
            f"the cache of 1000 blocks and its inputs need {needed} bytes and cpu has {needed - 1} free: "
            "workload.num_blocks=999 would fit"
        )

    def test_that_is_free_is_what_the_machine_can_give(self):
        import psutil

        assert 0 < workload._free_bytes("cpu") <= psutil.virtual_memory().total
