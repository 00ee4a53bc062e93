"""Check what kvexp.indexer_k_quant_and_cache refuses, each in one sentence that names the argument."""

import re
from dataclasses import replace

import pytest
import torch

import kvexp
from tests.helpers import indexer
from tests.helpers.indexer import INDEXER, SCALE_FORMATS

KEYS = torch.zeros(3, 128, dtype=torch.bfloat16)
BYTES = torch.zeros(8, 16, 132, dtype=torch.uint8)


def changed(**arguments):
    return replace(indexer.problem("cpu", [5, 1, 9]), **arguments)


@pytest.mark.parametrize(
    ("posed", "kind", "sentence"),
    [
        (changed(k=[1.0]), TypeError, "k must be a torch.Tensor, not list"),
        (changed(k=KEYS.unsqueeze(1)), ValueError, "k must be [num_tokens, 128], not [3, 1, 128]"),
        (changed(k=KEYS[:, :64]), ValueError, "k must be [num_tokens, 128], not [3, 64]"),
        (
            changed(k=KEYS[:2]), ValueError,
            "k must have a row for each of the 3 tokens of slot_mapping, not 2",
        ),
        (
            changed(k=KEYS.repeat(1, 2)[:, ::2]), ValueError,
            "k must have a contiguous last dim, not the strides (256, 2)",
        ),
        (changed(k=KEYS.float()), TypeError, "k must be one of float16, bfloat16, not float32"),
        (
            changed(k=KEYS.to(torch.float8_e4m3fn)), TypeError,
            "k must be one of float16, bfloat16, not float8_e4m3fn",
        ),
        (
            changed(kv_cache=BYTES[0]), ValueError,
            "kv_cache must be [num_blocks, block_size, 132], not [16, 132]",
        ),
        (
            changed(kv_cache=BYTES[..., :128]), ValueError,
            "kv_cache must be [num_blocks, block_size, 132], not [8, 16, 128]",
        ),
        (
            changed(kv_cache=BYTES.view(torch.float8_e4m3fn)), TypeError,
            "kv_cache must be uint8, not float8_e4m3fn",
        ),
        (
            changed(kv_cache=torch.zeros(8, 16, 136, dtype=torch.uint8)[..., :132]), ValueError,
            "kv_cache must have contiguous blocks, not the strides (2176, 136, 1)",
        ),
        (
            changed(kv_cache=BYTES[:1].expand(8, 16, 132)), ValueError,
            "kv_cache must have memory of its own for each element, not the strides (0, 132, 1)",
        ),
        (changed(slot_mapping=torch.zeros(3)), TypeError, "slot_mapping must be int64, not float32"),
        (changed(quant_block_size=64), ValueError, "quant_block_size must be 128, not 64"),
        (changed(quant_block_size="128"), TypeError, "quant_block_size must be an int, not str"),
        (changed(scale_fmt="e8m0"), ValueError, "scale_fmt must be one of float32, ue8m0, not 'e8m0'"),
        (changed(scale_fmt=[]), TypeError, "scale_fmt must be a str or None, not list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_is_named(posed, kind, sentence):
    before = posed.storage.clone()
    with pytest.raises(kind) as raised:
        kvexp.indexer_k_quant_and_cache(*posed.arguments, impl="torch")
    assert str(raised.value) == sentence
    assert torch.equal(posed.storage, before)


@pytest.mark.parametrize("scale_fmt", [None, ""])
def test_no_word_for_the_scale_means_float32(scale_fmt):
    indexer.assert_writes("library/torch", changed(scale_fmt=scale_fmt))


def test_torch_traces_the_call_and_checks_the_operator():
    for scale_fmt in (None, *SCALE_FORMATS):
        arguments = changed(scale_fmt=scale_fmt).arguments
        outcome = torch.library.opcheck(
            torch.ops.kvexp.indexer_k_quant_and_cache.default, (*arguments, "torch", False)
        )
        assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("scale_fmt", SCALE_FORMATS)
def test_a_function_of_one_s_own_is_verified_by_its_clauses(scale_fmt):
    def mine(*arguments):
        kvexp.indexer_k_quant_and_cache(*arguments, impl="torch")

    def takes_the_other_scale(*arguments):
        (other,) = {*SCALE_FORMATS} - {arguments[-1]}
        kvexp.indexer_k_quant_and_cache(*arguments[:-1], other, impl="torch")

    chosen = {"op": INDEXER, "layout": "indexer", "kv_cache_dtype": "fp8", "device": "cpu"}
    chosen["op_options"] = {"scale_fmt": scale_fmt}
    assert set(kvexp.verify(mine, **chosen).values()) == {"holds"}
    with pytest.raises(AssertionError, match=r"of kv_cache \((codes|scale)\)"):
        kvexp.verify(takes_the_other_scale, **chosen)


def test_an_option_that_an_op_has_not_is_refused():
    for options, sentence in (
        ({"scale_fmt": "e8m0"}, "op.scale_fmt must be float32 or ue8m0, not 'e8m0'"),
        ({"scale": "ue8m0"}, "indexer_k_quant_and_cache takes no option 'scale'"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            kvexp.verify(print, op=INDEXER, layout="indexer", device="cpu", op_options=options)


def test_a_slot_past_the_last_is_found_where_it_is_asked_for():
    posed = changed(slot_mapping=torch.tensor([1, 128, 3]))
    with pytest.raises(ValueError, match=r"slot_mapping\[1\] is 128, past the last of the cache's 128 slots"):
        kvexp.indexer_k_quant_and_cache(*posed.arguments, impl="torch", check_slots=True)


def test_an_allocated_cache_holds_the_codes_then_the_scales_of_a_block():
    sizes = {"num_blocks": 3, "block_size": 4, "num_heads": 1, "head_size": 128, "head_size_v": 4}
    layers = kvexp.allocate_layers(2, "indexer", **sizes, kv_cache_dtype="fp8", device="cpu")
    kvexp.indexer_k_quant_and_cache(
        KEYS + 448, layers[1].kv_cache, torch.tensor([9, -1, 2]), 128, "ue8m0", impl="torch"
    )
    codes, scales, _ = layers[1]
    for block, offset in ((2, 1), (0, 2)):
        assert codes[block, offset].tolist() == [0x7E] * 128
        assert scales[block, offset].view(torch.float32).tolist() == [1.0]
    assert int(codes.count_nonzero()) == 256
    assert not any(plane.any() for plane in layers[0])
