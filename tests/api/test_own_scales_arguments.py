"""Check what reshape_and_cache_flash_per_token_head refuses, each in a sentence that names the argument."""

from dataclasses import replace

import pytest
import torch

import kvexp
from kvexp.op import PER_TOKEN_HEAD
from tests.helpers import own_scales
from tests.helpers.own_scales import INT8, OP, TO_FP8

ROWS = torch.zeros(3, 3, 128, dtype=torch.bfloat16)
CELLS = torch.zeros(8, 16, 3, 264, dtype=torch.uint8)


def changed(kv_cache_dtype=INT8, **arguments):
    posed = own_scales.problem("cpu", [5, 1, 9], kv_cache_dtype=kv_cache_dtype)
    return replace(posed, **arguments)


@pytest.mark.parametrize(
    ("posed", "kind", "sentence"),
    [
        (changed(key=[1.0]), TypeError, "key must be a torch.Tensor, not list"),
        (changed(key=ROWS[0]), ValueError, "key must be [num_tokens, num_heads, head_size], not [3, 128]"),
        (changed(value=ROWS[..., :0]), ValueError, "value must have heads with elements, not [3, 3, 0]"),
        (changed(value=ROWS[..., ::2]), ValueError,
         "value must have adjacent heads of contiguous elements, not the strides (384, 128, 2)"),
        (changed(value=ROWS[:, :2]), ValueError, "value must have 3 heads as key has, not 2"),
        (changed(value=ROWS.half()), TypeError, "value must be bfloat16 as key is, not float16"),
        (
            changed(key=ROWS.to(torch.float8_e4m3fn), value=ROWS.to(torch.float8_e4m3fn)), TypeError,
            "key must be one of float16, bfloat16, float32, not float8_e4m3fn",
        ),
        (
            changed(kv_cache=CELLS[..., :256]), ValueError,
            "kv_cache must be [num_blocks, block_size, 3, 264] (num_heads, head_size + 4 + head_size_v + 4), "
            "not [8, 16, 3, 256]",
        ),
        (changed(kv_cache=CELLS.view(torch.int8)), TypeError,
         "kv_cache must be uint8 for kv_cache_dtype=int8_per_token_head, not int8"),
        (changed(TO_FP8, kv_cache=CELLS.view(torch.float8_e4m3fn)), TypeError,
         "kv_cache must be uint8 for kv_cache_dtype=fp8_per_token_head, not float8_e4m3fn"),
        (changed(kv_cache=CELLS.repeat(1, 1, 1, 2)[..., ::2]), ValueError,
         "kv_cache must have a contiguous last dim, not the strides (25344, 1584, 528, 2)"),
        (changed(kv_cache=CELLS[:, :, :1].expand(8, 16, 3, 264)), ValueError,
         "kv_cache must have memory of its own for each element, not the strides (12672, 792, 0, 1)"),
        *((replace(changed(), kv_cache_dtype=word), ValueError,
           f"kv_cache_dtype must be one of int8_per_token_head, fp8_per_token_head, not '{word}'")
          for word in ("auto", "fp8", "int4_per_token_head")),
        (replace(changed(), kv_cache_dtype=None), TypeError, "kv_cache_dtype must be a str, not NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_is_named(posed, kind, sentence):
    before = posed.storage.clone()
    with pytest.raises(kind) as raised:
        getattr(kvexp, OP)(*posed.arguments, impl="torch")
    assert str(raised.value) == sentence
    assert torch.equal(posed.storage, before)


def test_a_scale_is_no_argument():
    with pytest.raises(TypeError, match="takes 5 positional arguments but 6"):
        getattr(kvexp, OP)(*changed().arguments, torch.ones(1), impl="torch")


@pytest.mark.parametrize("kv_cache_dtype", PER_TOKEN_HEAD)
def test_torch_traces_the_call_and_checks_the_operator(kv_cache_dtype):
    posed = changed(kv_cache_dtype)
    outcome = torch.library.opcheck(getattr(torch.ops.kvexp, OP).default, (*posed.arguments, "torch", False))
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("kv_cache_dtype", PER_TOKEN_HEAD)
def test_a_function_of_one_s_own_is_verified_by_its_clauses(kv_cache_dtype):
    def mine(*arguments):
        getattr(kvexp, OP)(*arguments, impl="torch")

    def keeps_no_small_scale(key, *others):
        getattr(kvexp, OP)(torch.where(key.abs() < 1e-5, 0, key), *others, impl="torch")

    chosen = {"op": OP, "layout": "NHD_packed", "kv_cache_dtype": kv_cache_dtype, "device": "cpu"}
    assert set(kvexp.verify(mine, **chosen).values()) == {"holds"}
    with pytest.raises(AssertionError, match=r"\(clause special_values, 7 tokens\): .* of kv_cache \(key\)"):
        kvexp.verify(keeps_no_small_scale, **chosen)


def test_a_slot_past_the_last_is_found_where_it_is_asked_for():
    posed = replace(changed(), slot_mapping=torch.tensor([1, 128, 3]))
    with pytest.raises(ValueError, match=r"slot_mapping\[1\] is 128, past the last of the cache's 128 slots"):
        getattr(kvexp, OP)(*posed.arguments, impl="torch", check_slots=True)
