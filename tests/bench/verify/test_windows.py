"""Calls that are given inputs of their own: each mapping is held against the rows that it was given last."""

import pytest
import torch

from kvexp.errors import IncorrectResult
from kvexp.gpu import scan
from kvexp.workload.inputs import window_step
from tests.helpers import oracle, tiny_curve
from tests.helpers.strides import verify

WINDOWS = 3


@pytest.fixture(params=[{}, {"rows": "qkv", "num_heads": 3}, {"num_heads": 1, "head_size": 46}], ids=str)
def tensors(request):
    chosen = {"num_tokens": 5, "num_blocks": 40, "dtype": "bfloat16", **request.param}
    case = tiny_curve.case(**chosen)
    with tiny_curve.memory(**chosen, cold_windows=WINDOWS) as memory:
        scan.poison(memory.cache.storage)
        yield memory.build(case, 4, WINDOWS, cold=True)


def run(tensors, pairs):
    """Writes each mapping with a window's rows, in this order."""

    def calls():
        for mapping, window in pairs:
            own = tensors.window(window)
            torch_s = oracle.implementation("torch", "cpu")
            caches = own.key_cache, own.value_cache, own.slot_mappings[mapping]
            torch_s.reshape_and_cache_flash(own.key, own.value, *caches, "auto", None, None)()

    return calls


def test_cold_windows_share_no_row_and_are_aligned_alike(tensors):
    first, *others = [tensors.window(i) for i in range(WINDOWS)]
    for other in others:
        assert other.key.shape == first.key.shape
        assert (other.key.data_ptr() - first.key.data_ptr()) % 16 == 0
        assert (other.value.data_ptr() - first.value.data_ptr()) % 16 == 0
        assert not torch.equal(other.key, first.key)
    rows = torch.cat([tensors.window(i).key.flatten(1) for i in range(WINDOWS)])
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize(
    ("chosen", "step"),
    # Rows from one address of 16 bytes to the next: rows of 128 bytes, of 924 in the fused tensor, of 92.
    [({}, 1), ({"rows": "qkv", "num_query_heads": 3, "num_heads": 1, "head_size": 46}, 4),
     ({"num_heads": 1, "head_size": 46}, 4)],
)  # fmt: skip
def test_hot_windows_share_all_rows_but_as_few_as_keep_them_aligned(chosen, step):
    chosen = {"num_tokens": 5, "dtype": "bfloat16", "extra_tokens": 1, **chosen}
    case = tiny_curve.case(**chosen)
    assert window_step(case, 2) == step
    with tiny_curve.memory(**chosen) as memory:
        tensors = memory.build(case, 1, 2)
        one, other = tensors, tensors.window(1)
        for mine, its in ((one.key, other.key), (one.value, other.value)):
            assert torch.equal(mine[step:], its[:-step])
            assert not any(torch.equal(a, b) for a, b in zip(mine, its, strict=True))
            assert (its.data_ptr() - mine.data_ptr()) % 16 == 0
            assert (mine.shape, mine.stride()) == (its.shape, its.stride())


def test_the_rows_of_the_last_call_are_right(tensors):
    verify(run(tensors, [(0, 0), (1, 1), (2, 2), (3, 0), (0, 1)]), tensors, [1, 1, 2, 0])


def test_those_of_another_call_are_not(tensors):
    pairs = [(0, 0), (1, 1), (2, 2), (3, 0)]
    verify(run(tensors, pairs), tensors, [0, 1, 2, 0])
    for windows in ([0, 1, 2, 1], [1, 1, 2, 0], [0, 0, 0, 0]):
        with pytest.raises(IncorrectResult, match="elements written to key_cache are wrong"):
            verify(run(tensors, pairs), tensors, windows)


def test_a_mapping_that_is_left_out_is_found(tensors):
    with pytest.raises(IncorrectResult, match="are wrong"):
        verify(run(tensors, [(0, 0), (1, 1), (2, 2)]), tensors, [0, 1, 2, 0])
