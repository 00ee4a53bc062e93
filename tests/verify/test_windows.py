"""Calls that are given inputs of their own: each mapping is held against the rows that it was given last."""

import pytest
import torch

from kvexp.errors import IncorrectResult
from kvexp.law import poison, verify
from kvexp.workload import build
from kvexp.workload.inputs import window_rows
from tests import law, tiny

WINDOWS = 3


@pytest.fixture(params=[{}, {"rows": "qkv", "num_heads": 3}, {"num_heads": 1, "head_size": 46}], ids=str)
def tensors(request):
    chosen = {"num_tokens": 5, "num_blocks": 40, "dtype": "bfloat16", **request.param}
    case = tiny.case(**chosen)
    with tiny.memory(**chosen, least_rows=WINDOWS * window_rows(case, 2)) as memory:
        poison(memory.cache)
        yield build(case, memory, 4, WINDOWS)


def run(tensors, pairs):
    """Writes each mapping with a window's rows, in this order."""

    def calls():
        for mapping, window in pairs:
            own = tensors.window(window)
            torch_s = law.implementation("torch", "cpu")
            caches = own.key_cache, own.value_cache, own.slot_mappings[mapping]
            torch_s.reshape_and_cache_flash(own.key, own.value, *caches, "auto", None, None)()

    return calls


def test_windows_share_no_row_and_are_aligned_alike(tensors):
    first, *others = [tensors.window(i) for i in range(WINDOWS)]
    for other in others:
        assert other.key.shape == first.key.shape
        assert (other.key.data_ptr() - first.key.data_ptr()) % 16 == 0
        assert (other.value.data_ptr() - first.value.data_ptr()) % 16 == 0
        assert not torch.equal(other.key, first.key)
    rows = torch.cat([tensors.window(i).key.flatten(1) for i in range(WINDOWS)])
    assert len(rows.unique(dim=0)) == len(rows)


def test_the_rows_of_the_last_call_are_right(tensors):
    verify(run(tensors, [(0, 0), (1, 1), (2, 2), (3, 0), (0, 1)]), tensors, 4, [1, 1, 2, 0])


def test_those_of_another_call_are_not(tensors):
    pairs = [(0, 0), (1, 1), (2, 2), (3, 0)]
    verify(run(tensors, pairs), tensors, 4, [0, 1, 2, 0])
    for windows in ([0, 1, 2, 1], [1, 1, 2, 0], [0, 0, 0, 0]):
        with pytest.raises(IncorrectResult, match="elements written to key_cache are wrong"):
            verify(run(tensors, pairs), tensors, 4, windows)


def test_a_mapping_that_is_left_out_is_found(tensors):
    with pytest.raises(IncorrectResult, match="are wrong"):
        verify(run(tensors, [(0, 0), (1, 1), (2, 2)]), tensors, 4, [0, 1, 2, 0])
