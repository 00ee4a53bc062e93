"""The flash function on head-major caches, which it knows by a key cache of five dims."""

from dataclasses import replace

import pytest
import torch

import kvexp
from tests.helpers import oracle
from tests.helpers.library_calls import SLOTS, assert_refused
from tests.helpers.oracle import FLASH, PAGED

TYPES = [("auto", "per_tensor"), ("fp8", "per_tensor"), ("fp8_e5m2", "per_head")]


def head_major(slots=SLOTS, **chosen):
    return oracle.problem("cpu", slots, op=PAGED, **chosen)


def flash(*arguments, **options):
    kvexp.reshape_and_cache_flash(*arguments, impl="torch", **options)


@pytest.mark.parametrize(("kv_cache_dtype", "scale"), TYPES)
@pytest.mark.parametrize("slots", [SLOTS, [], [-1, 3, 8 * 16, 0]], ids=str)
def test_writes_what_reshape_and_cache_writes(slots, kv_cache_dtype, scale):
    posed = head_major(slots, kv_cache_dtype=kv_cache_dtype, scale=scale, num_layers=2)
    expected = posed.expected()
    flash(*posed.arguments)
    assert torch.equal(posed.storage, expected)


def test_writes_caches_of_either_shape_in_turn():
    for _ in range(2):
        for op in (FLASH, PAGED):
            posed = oracle.problem("cpu", SLOTS, op=op)
            expected = posed.expected()
            flash(*posed.arguments)
            assert torch.equal(posed.storage, expected)


def test_checks_slots_of_head_major_blocks():
    posed = head_major([5, 128])
    sentence = "slot_mapping[1] is 128, past the last of the cache's 128 slots"
    assert_refused(replace(posed, op=FLASH), ValueError, sentence, check_slots=True)


def test_names_both_shapes_where_a_key_cache_has_neither():
    posed = oracle.problem("cpu", SLOTS)
    assert_refused(
        replace(posed, key_cache=posed.key_cache.flatten(2)),
        ValueError,
        "key_cache must be [num_blocks, block_size, 2, 64], or head-major "
        "[num_blocks, 2, 64 / x, block_size, x], not [8, 16, 128]",
    )


def test_reshape_and_cache_itself_takes_no_flash_caches():
    posed = oracle.problem("cpu", SLOTS)
    assert_refused(
        replace(posed, op=PAGED),
        ValueError,
        "value_cache must be [num_blocks, 2, 64, block_size], not [8, 16, 2, 64]",
    )
