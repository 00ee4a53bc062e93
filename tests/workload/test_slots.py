"""Slots: each pattern has every slot once, and each its own order."""

from dataclasses import replace

import pytest
import torch

from kvexp.errors import Unsupported
from kvexp.op.reshape_and_cache_flash import ReshapeAndCacheFlash
from kvexp.workload import slots as patterns
from tests.helpers import compose, tiny_curve

CPU = torch.device("cpu")
CACHES = [(8, 16), (7, 5), (1, 1), (1, 64), (64, 1), (128, 16)]


def order(slots, num_blocks=128, block_size=16, seed=0):
    case = tiny_curve.case(slots=slots, num_blocks=num_blocks, block_size=block_size, seed=seed)
    return patterns.order(case, CPU, torch.Generator().manual_seed(seed))


def runs(slots):
    """The stretches of ascending neighbours, as their first and last slots."""
    cuts = (slots.diff() != 1).nonzero().flatten() + 1
    return [(int(run[0]), int(run[-1])) for run in slots.tensor_split(cuts)]


@pytest.mark.parametrize(("num_blocks", "block_size"), CACHES)
@pytest.mark.parametrize("slots", compose.words("slots"))
def test_every_slot_is_there_once(slots, num_blocks, block_size):
    found = order(slots, num_blocks, block_size)
    assert found.dtype == torch.int64
    assert torch.equal(found.sort().values, torch.arange(num_blocks * block_size))


@pytest.mark.parametrize("slots", ["random", "decode", "prefill"])
def test_a_seed_determines_the_order(slots):
    assert torch.equal(order(slots, seed=3), order(slots, seed=3))
    assert not torch.equal(order(slots, seed=3), order(slots, seed=4))


def test_contiguous_ascends_and_reversed_descends():
    assert order("contiguous").tolist() == list(range(2048))
    assert order("reversed").tolist() == list(range(2047, -1, -1))


def test_random_has_hardly_any_runs():
    assert len(runs(order("random"))) > 2000


@pytest.mark.parametrize(("num_blocks", "block_size"), [(8, 16), (7, 5), (64, 1)])
def test_decode_tokens_of_one_call_lie_in_different_blocks(num_blocks, block_size):
    blocks = order("decode", num_blocks, block_size) // block_size
    for window in blocks.unfold(0, num_blocks, 1):
        assert len(window.unique()) == num_blocks


def test_decode_sequences_are_at_different_offsets_and_go_on_in_theirs():
    rounds = order("decode").view(16, 128)
    blocks, offsets = rounds // 16, rounds % 16
    assert len(offsets[0].unique()) > 8
    assert blocks[0].tolist() != sorted(blocks[0].tolist())
    assert torch.equal(blocks[1:], blocks[:-1])
    assert torch.equal(offsets[1:], (offsets[:-1] + 1) % 16)


def test_prefill_sequences_begin_and_end_inside_blocks_in_any_order():
    found = runs(order("prefill"))
    assert 4 < len(found) <= 17
    assert sum(first % 16 != 0 for first, _ in found) > len(found) // 2
    assert sum(last % 16 != 15 for _, last in found) > len(found) // 2
    assert found != sorted(found)


def test_prefill_of_a_cache_below_one_sequence_is_one_sequence():
    assert runs(order("prefill", 4, 16)) == [(0, 63)]


def test_another_word_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match="'sorted' is not one of random, contiguous, reversed, decode"):
        order("sorted")


def count_places(**chosen):
    return ReshapeAndCacheFlash().count_places(tiny_curve.case(**chosen))


class TestTooFewSlots:
    def refusal(self, **chosen):
        with pytest.raises(Unsupported) as raised:
            count_places(**chosen)
        return str(raised.value)

    @pytest.mark.parametrize("slots", compose.words("slots"))
    def test_are_named(self, slots):
        assert self.refusal(slots=slots, num_tokens=129) == (
            "num_tokens 129 exceeds the 128 slots of the cache (8 blocks of 16)"
        )

    def test_of_blocks_are_named_for_decode_alone(self):
        assert self.refusal(slots="decode", num_tokens=9) == (
            "num_tokens 9 exceeds the 8 blocks of the cache, and slots=decode writes each token to a block "
            "of its own"
        )
        for slots in compose.words("slots"):
            count_places(slots=slots, num_tokens=8)
            if slots != "decode":
                count_places(slots=slots, num_tokens=128)


class TestPadding:
    def kept(self, num_tokens, padding, padding_at="end", seed=0):
        chosen = {"num_tokens": num_tokens, "padding": padding, "padding_at": padding_at, "seed": seed}
        found = patterns.draw_unpadded(tiny_curve.case(**chosen), CPU)
        return None if found is None else found.tolist()

    def test_there_is_none_unless_it_is_asked_for(self):
        assert self.kept(50, 0.0) is None
        assert self.kept(50, 0.0, "scattered") is None

    def test_that_rounds_to_no_token_is_none(self):
        assert self.kept(4, 0.1) is None

    @pytest.mark.parametrize("padding_at", compose.words("padding_at"))
    @pytest.mark.parametrize(
        ("num_tokens", "padding", "written"),
        [(50, 0.5, 25), (50, 0.1, 45), (3, 0.34, 2), (100, 0.99, 1), (2, 0.9, 1)],
    )
    def test_has_its_fraction_and_leaves_at_least_one_token(self, num_tokens, padding, padding_at, written):
        kept = self.kept(num_tokens, padding, padding_at)
        assert len(kept) == written
        assert kept == sorted(set(kept))
        assert 0 <= kept[0] <= kept[-1] < num_tokens

    def test_one_token_is_never_padding(self):
        assert tiny_curve.case(num_tokens=1, padding=0.99).written_tokens == 1
        assert self.kept(1, 0.99) is None

    def test_at_the_end_comes_after_all_others(self):
        assert self.kept(50, 0.5) == list(range(25))

    def test_scattered_lies_between_the_others_where_the_seed_puts_it(self):
        kept = self.kept(50, 0.5, "scattered")
        assert kept != list(range(25))
        assert kept[-1] > 25
        assert kept == self.kept(50, 0.5, "scattered")
        assert kept != self.kept(50, 0.5, "scattered", seed=1)


def given(slots, **sizes):
    """A case of recorded slots, or of a batch."""
    recorded = () if isinstance(slots, str) else tuple(slots)
    chosen = {"slots": "sha256:0123456789abcdef"} if recorded else {"slots": "batch", "batch": slots}
    return replace(tiny_curve.case(**sizes), recorded=recorded, **chosen)


def mappings(case, rotated=False, seed=0):
    """The mappings of a case, int64 `[mappings, num_tokens]`."""
    count = ReshapeAndCacheFlash().count_places(case)
    found = patterns.order(case, CPU, torch.Generator().manual_seed(seed), rotated)
    assert len(found) == case.num_slots
    stride = case.num_tokens + (case.num_tokens % 2 if count > 1 else 0)
    return found[: count * stride].view(count, stride)[:, : case.num_tokens]


RECORDED = [5, 20, 22, 21]


def test_recorded_slots_are_written_as_they_are_then_shifted_by_whole_blocks():
    found = mappings(given(RECORDED, num_tokens=4, num_blocks=9, block_size=4))
    assert found[0].tolist() == RECORDED
    shifts = (found - found[0]) % 36
    assert (shifts == shifts[:, :1]).all()
    assert (shifts % 4 == 0).all()
    assert len(found) == 4
    assert len(found.unique()) == found.numel()


def test_other_draws_of_recorded_slots_are_at_other_blocks_and_share_none_either():
    case = given(RECORDED, num_tokens=4, num_blocks=9, block_size=4)
    first, other = mappings(case), mappings(case, rotated=True)
    assert ((other - first) % 36 == (other - first)[0, 0] % 36).all()
    assert other[0].tolist() != RECORDED
    assert len(other.unique()) == other.numel()


@pytest.mark.parametrize("seed", range(20))
def test_shifts_of_any_recorded_slots_share_none(seed):
    drawn = torch.Generator().manual_seed(seed)
    num_blocks, block_size = (int(torch.randint(1, 12, (), generator=drawn)) for _ in range(2))
    count = int(torch.randint(1, num_blocks * block_size + 1, (), generator=drawn))
    slots = torch.randperm(num_blocks * block_size, generator=drawn)[:count].tolist()
    found = mappings(given(slots, num_tokens=count, num_blocks=num_blocks, block_size=block_size))
    assert found[0].tolist() == slots
    assert len(found.unique()) == found.numel()


def test_padding_of_recorded_slots_is_where_it_was_recorded():
    case = given([7, -1, 3, -1], num_tokens=4, padding=0.5, padding_at="scattered")
    assert patterns.draw_unpadded(case, CPU).tolist() == [0, 2]
    assert mappings(case)[0][[0, 2]].tolist() == [7, 3]


def test_a_batch_writes_the_last_tokens_of_each_request_to_blocks_of_its_own():
    case = given("3q1s7_q6s9", num_tokens=9, num_blocks=16, block_size=4)
    found = mappings(case)
    assert len(found) == 16 // 6
    assert len(found.unique()) == found.numel()
    for one in found:
        blocks, places = one // 4, one % 4
        assert places.tolist() == [2, 2, 2, 3, 0, 1, 2, 3, 0]
        assert len(blocks[:3].unique()) == 3
        assert blocks[4:8].unique().numel() == 1
        assert len(blocks.unique()) == 6
    assert not torch.equal(found, mappings(case, seed=1))


def test_a_batch_whose_requests_exceed_the_cache_is_refused():
    case = given("3q1s7", num_tokens=3, num_blocks=5, block_size=4)
    with pytest.raises(Unsupported, match="batch=3q1s7 needs 6 blocks of 4 slots, and the cache has 5"):
        ReshapeAndCacheFlash().count_places(case)
