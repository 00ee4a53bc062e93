"""Rows: how key and value lie in memory, and what they hold."""

import pytest
import torch

from kvexp.workload import inputs
from tests.helpers import compose, oracle, tiny_curve

DTYPES = compose.options("dtype")


def places(held, rows):
    """The item of the inputs' memory that each element of `rows` is."""
    return torch.arange(held.inputs.numel()).as_strided(rows.shape, rows.stride(), rows.storage_offset())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", compose.words("rows"))
def test_all_elements_have_places_of_their_own(rows, dtype):
    chosen = {"rows": rows, "num_query_heads": 3, "head_size_v": 48, "extra_tokens": 2}
    with tiny_curve.memory(dtype=dtype, kv_cache_dtype="auto", layout="NHD_packed", **chosen) as held:
        assert held.inputs.dtype == oracle.DTYPES[dtype]
        step = inputs.window_step(held.largest, held.inputs.itemsize)
        assert held.rows.key.shape == (52 + step, 2, 32)
        assert held.rows.value.shape == (52 + step, 2, 48)
        assert held.inputs.numel() == inputs.count_items(held.largest, held.inputs.itemsize)
        every = torch.cat([places(held, plane).flatten() for plane in (held.rows.key, held.rows.value)])
        assert len(every.unique()) == held.rows.key.numel() + held.rows.value.numel()
        for plane in (held.rows.key, held.rows.value):
            assert plane.stride()[1:] == (plane.shape[2], 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_contiguous_rows_are_two_aligned_tensors(dtype):
    with tiny_curve.memory(dtype=dtype) as held:
        for plane in (held.rows.key, held.rows.value):
            assert plane.is_contiguous()
            assert plane.data_ptr() % 16 == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_misaligned_rows_begin_one_item_past_an_aligned_address(dtype):
    with tiny_curve.memory(dtype=dtype, rows="misaligned") as held:
        for plane in (held.rows.key, held.rows.value):
            assert plane.is_contiguous()
            assert plane.data_ptr() % 16 == plane.itemsize


def test_qkv_rows_are_views_of_a_tensor_of_query_key_and_value_heads():
    with tiny_curve.memory(rows="qkv", num_query_heads=5) as held:
        fused = held.inputs[: 51 * 9 * 32].view(51, 5 + 2 + 2, 32)
        for plane, heads in ((held.rows.key, fused[:, 5:7]), (held.rows.value, fused[:, 7:])):
            assert plane.data_ptr() == heads.data_ptr()
            assert (plane.shape, plane.stride()) == (heads.shape, heads.stride())


def test_a_value_head_of_another_size_has_its_place_in_the_fused_row():
    with tiny_curve.memory(op=oracle.DIFFKV, rows="qkv", num_query_heads=3, head_size_v=16) as held:
        fused = held.inputs[: 51 * 192].view(51, 3 * 32 + 2 * 32 + 2 * 16)
        assert torch.equal(held.rows.key.flatten(1), fused[:, 96:160])
        assert torch.equal(held.rows.value.flatten(1), fused[:, 160:])


@pytest.mark.parametrize(("windows", "cold"), [(2, False), (4, True)])
@pytest.mark.parametrize("rows", compose.words("rows"))
def test_a_point_has_the_places_and_slots_that_it_has_as_a_curve_of_its_own(rows, windows, cold):
    chosen = {"rows": rows, "num_query_heads": 3, "num_heads": 1, "head_size": 46}
    case = tiny_curve.case(**chosen, num_tokens=3)
    least = windows if cold else 0
    with (
        tiny_curve.memory(**chosen, cold_windows=least) as held,
        tiny_curve.memory(**chosen, num_tokens=3, cold_windows=least) as alone,
    ):
        assert len(held.rows.key) > len(alone.rows.key)
        one, other = (memory.build(case, 2, windows, cold) for memory in (held, alone))
        assert torch.equal(one.slot_mappings, other.slot_mappings)
        for window in range(windows):
            for plane in ("key", "value"):
                mine, its = (getattr(tensors.window(window), plane) for tensors in (one, other))
                assert mine.shape == (3, 1, 46)
                assert (mine.storage_offset(), mine.stride()) == (its.storage_offset(), its.stride())


def test_values_follow_their_keys_at_once():
    with tiny_curve.memory() as held:
        tensors = held.build(tiny_curve.case(num_tokens=3), 1)
        assert tensors.key.data_ptr() == held.inputs.data_ptr()
        assert tensors.value.data_ptr() == tensors.key.data_ptr() + tensors.key.numel() * tensors.key.itemsize


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 3, 16])
def test_what_is_none_of_a_point_s_own_begins_aligned(num_tokens, dtype):
    """It is looked at too, in whole vectors."""
    sizes = {"dtype": dtype, "kv_cache_dtype": "auto", "num_heads": 1, "head_size": 7}
    with tiny_curve.memory(**sizes) as held:
        tensors = held.build(tiny_curve.case(**sizes, num_tokens=num_tokens), 1)
        assert 0 < tensors.rows.flat.nbytes < held.inputs.nbytes
        assert tensors.rows.flat.nbytes % 16 == 0


def test_extra_tokens_are_rows_behind_the_last_one():
    chosen = {"extra_tokens": 3, "num_tokens": (1, 7)}
    with tiny_curve.memory(**chosen) as held:
        for num_tokens in (1, 7):
            tensors = held.build(tiny_curve.case(**chosen | {"num_tokens": num_tokens}), 1)
            assert len(tensors.key) == len(tensors.value) == num_tokens + 3
            assert tensors.slot_mappings.shape == (1, num_tokens)


def test_rows_are_no_more_than_the_slots_the_extra_ones_and_the_next_set_s():
    with tiny_curve.memory(num_tokens=(1, 100000)) as held:
        assert held.rows.key.shape == (128 + 1, 2, 32)
    with tiny_curve.memory(num_tokens=(1, 100000), extra_tokens=5) as held:
        assert held.rows.value.shape == (133 + 1, 2, 32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", compose.words("rows"))
def test_rows_are_normal_numbers_keys_unlike_values_gaps_included(rows, dtype):
    with tiny_curve.memory(dtype=dtype, kv_cache_dtype="auto", rows=rows) as held:
        numbers = held.inputs.float()
        assert abs(float(numbers.std()) - 1) < 0.1
        assert abs(float(numbers.mean())) < 0.1
        assert not torch.equal(held.rows.key.float(), held.rows.value.float())


@pytest.mark.parametrize("rows", compose.words("rows"))
@pytest.mark.parametrize("dtype", oracle.WIDE)
class TestScales:
    def test_of_a_tensor_put_its_largest_at_64(self, dtype, rows):
        with tiny_curve.memory(dtype=dtype, kv_cache_dtype="fp8", rows=rows) as held:
            tensors = held.build(tiny_curve.case(dtype=dtype, kv_cache_dtype="fp8", rows=rows), 1)
            for plane, scale in ((held.rows.key, tensors.k_scale), (held.rows.value, tensors.v_scale)):
                assert (scale.shape, scale.dtype) == ((), torch.float32)
                assert scale == plane.float().abs().max() / 64

    def test_of_heads_put_the_largest_of_each_at_64(self, dtype, rows):
        chosen = {"dtype": dtype, "kv_cache_dtype": "fp8", "rows": rows, "scale": "per_head", "num_heads": 3}
        with tiny_curve.memory(**chosen) as held:
            tensors = held.build(tiny_curve.case(**chosen), 1)
            for plane, scale in ((held.rows.key, tensors.k_scale), (held.rows.value, tensors.v_scale)):
                assert scale.is_contiguous()
                assert scale.dtype == torch.float32
                assert torch.equal(scale, plane.float().abs().amax(dim=(0, 2)) / 64)
                assert len(scale.unique()) > 1


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_rows_that_are_stored_unscaled_have_scales_of_one(dtype):
    with tiny_curve.memory(dtype=dtype, kv_cache_dtype=dtype) as held:
        assert held.scales.flatten().tolist() == [1.0, 1.0]
