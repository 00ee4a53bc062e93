"""A real curve's rows and cache are looked at in chunks; so are these."""

from itertools import cycle

import pytest
import torch

from kvexp.bench import verify as law_of_bytes
from kvexp.gpu import scan
from tests.helpers import compose, strides
from tests.helpers.strides import FIRST, TOTAL, all_poison, free_slot, point, reason, spoilt, verify


@pytest.fixture(autouse=True)
def small(monkeypatch):
    # Five rows of the cache at once; the cache in pieces that its size is no multiple of.
    monkeypatch.setattr(law_of_bytes, "ROWS_BYTES", 5 * 2 * 32 * 2)
    monkeypatch.setattr(scan, "CHUNK_WORDS", 513)


def test_right_bytes_pass(tensors):
    verify(lambda: strides.write(tensors), tensors, FIRST)
    assert all_poison(tensors.cache)


def test_a_wrong_bit_is_found_where_it_is(tensors):
    for mapping, token in [(0, 4), (0, 5), (1, 0), (2, 15)]:
        slot = int(tensors.slot_mappings[mapping, token])
        found = reason(tensors, spoilt(tensors, "value_cache", slot, 1, 0))
        assert f"the first at token {token}, head 1, element 0 (slot {slot})" in found
        assert f"of the {TOTAL} elements written to value_cache" in found


@pytest.mark.parametrize("padding_at", ["end", "scattered"])
def test_padding_is_left_out_in_each(layout, padding_at):
    with point(layout=layout, padding=0.5, padding_at=padding_at) as tensors:
        verify(lambda: strides.write(tensors), tensors, FIRST)
        token = tensors.unpadded.tolist()[-1]
        slot = int(tensors.slot_mappings[2, token])
        found = reason(tensors, spoilt(tensors, "key_cache", slot, 0, 3))
        assert f"the first at token {token}, head 0, element 3 (slot {slot})" in found


def test_a_changed_guard_is_found(tensors):
    for at in (0, 4095, -4096, -1):

        def run(at=at):
            strides.write(tensors)
            tensors.cache.storage[at] ^= 0x80

        assert f"byte {at % tensors.cache.storage.numel()} of" in reason(tensors, run)


@pytest.mark.parametrize(
    ("layout", "words"), [*zip(compose.options("layout"), cycle([1, 3, 512, 1 << 17]), strict=False)]
)
def test_a_byte_is_found_wherever_a_piece_ends(layout, words, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK_WORDS", words)
    with point(layout=layout) as tensors:
        run = spoilt(tensors, "key_cache", free_slot(tensors), 0, 0)
        at = int(strides.addresses(tensors, tensors.key_cache, torch.tensor([free_slot(tensors)]))[0, 0, 0])
        assert f"byte {at} of" in reason(tensors, run)
