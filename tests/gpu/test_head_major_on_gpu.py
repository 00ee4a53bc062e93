"""Groups of tokens that exchange some write each token once, wherever slots in a row begin and end."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from kvexp.impl import make
from tests.helpers import compose, oracle

DEVICE = "cuda:0"
NUM_SLOTS = 2048


def runs(num_tokens, mean, padding, seed):
    """Runs of some `mean` slots each in random order; so much of it padding."""
    drawn = random.Random(seed)
    cuts = sorted({0, NUM_SLOTS, *drawn.sample(range(NUM_SLOTS), NUM_SLOTS // mean)})
    pieces = [list(range(*cut)) for cut in pairwise(cuts)]
    drawn.shuffle(pieces)
    slots = [slot for piece in pieces for slot in piece][:num_tokens]
    return [-1 if drawn.random() < padding else slot for slot in slots]


@pytest.mark.parametrize("group_tokens", [None, 1, 2, 8, 32])
@pytest.mark.parametrize(
    ("dtype", "kv_cache_dtype"), [("bfloat16", "auto"), ("bfloat16", "fp8_e4m3"), ("float", "auto")]
)
@pytest.mark.parametrize("slot_first", [False, True])
@pytest.mark.parametrize("block_size", [8, 13, 16, 32])
def test_groups_that_exchange_tokens_hold_the_law(
    group_tokens, dtype, kv_cache_dtype, slot_first, block_size
):
    options = {"group_tokens": group_tokens, "slot_first": slot_first, "exchange": True}
    impl = make(replace(compose.choice("impl", "cuda"), options=options), device=DEVICE)
    for num_tokens in (*range(1, 36), 47, 64, 65, 100, 512):
        mean, padding = (3, 17, 64)[num_tokens % 3], (0, 0.2)[num_tokens % 2]
        posed = oracle.problem(
            DEVICE,
            runs(num_tokens, mean, padding, num_tokens),
            op=oracle.PAGED,
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            num_heads=3,
            head_size=16,
            block_size=block_size,
            num_blocks=NUM_SLOTS // block_size + 1,
        )
        expected = posed.expected()
        posed.bind(impl)()
        assert torch.equal(posed.storage, expected)
