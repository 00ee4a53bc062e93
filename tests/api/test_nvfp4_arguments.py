"""Check what kvexp.reshape_and_cache_flash_nvfp4 refuses, each in one sentence that names the argument."""

from dataclasses import replace

import pytest
import torch

import kvexp
from tests.helpers import nvfp4
from tests.helpers.nvfp4 import NVFP4_OP

ROWS = torch.zeros(3, 2, 64, dtype=torch.bfloat16)
POSITIVE = "must be positive and finite, not"


def changed(**arguments):
    return replace(nvfp4.problem("cpu", [5, 1, 9]), **arguments)


@pytest.mark.parametrize(
    ("posed", "kind", "sentence"),
    [
        (changed(key=ROWS[0]), ValueError, "key must be [num_tokens, num_heads, head_size], not [2, 64]"),
        (
            changed(key=ROWS[..., :40].clone(), value=ROWS[..., :40].clone()), ValueError,
            "key must have heads of a multiple of 16 elements, not 40",
        ),
        (
            changed(value=ROWS[..., :32].clone()), ValueError,
            "value must have heads of 64 elements as key has, not 32",
        ),
        (changed(key=ROWS.float(), value=ROWS.float()), TypeError,
         "key must be one of float16, bfloat16, not float32"),
        (changed(value=ROWS.half()), TypeError, "value must be bfloat16 as key is, not float16"),
        (
            changed(kv_cache=torch.zeros(8, 16, 144, dtype=torch.uint8)), ValueError,
            "kv_cache must be [num_blocks, page_bytes] with 144 bytes for each slot of a block, "
            "not [8, 16, 144]",
        ),
        (
            changed(kv_cache=torch.zeros(8, 145, dtype=torch.uint8)), ValueError,
            "kv_cache must be [num_blocks, page_bytes] with 144 bytes for each slot of a block, not [8, 145]",
        ),
        (
            changed(kv_cache=torch.zeros(8, 288, dtype=torch.uint8)[:, ::2]), ValueError,
            "kv_cache must have a contiguous last dim, not the strides (288, 2)",
        ),
        (
            changed(kv_cache=torch.zeros(1, 144, dtype=torch.uint8).expand(8, 144)), ValueError,
            "kv_cache must have memory of its own for each element, not the strides (0, 1)",
        ),
        (changed(kv_cache=torch.zeros(8, 144)), TypeError, "kv_cache must be uint8, not float32"),
        (changed(k_scale=None), TypeError, "k_scale must be a torch.Tensor, not NoneType"),
        (changed(v_scale=0.5), TypeError, "v_scale must be a torch.Tensor, not float"),
        (changed(k_scale=torch.ones(2)), ValueError, "k_scale must have one element, not [2]"),
        (changed(v_scale=torch.ones(()).double()), TypeError, "v_scale must be float32, not float64"),
        *(
            (changed(v_scale=torch.tensor(scale)), ValueError, f"v_scale {POSITIVE} {scale}")
            for scale in nvfp4.INVALID_SCALES
        ),
        (changed(layout="NHD_packed"), ValueError, "layout must be one of NHD, HND, not 'NHD_packed'"),
        (changed(layout=None), TypeError, "layout must be a str, not NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_is_named(posed, kind, sentence):
    before = posed.storage.clone()
    with pytest.raises(kind) as raised:
        kvexp.reshape_and_cache_flash_nvfp4(*posed.arguments, impl="torch")
    assert str(raised.value) == sentence
    assert torch.equal(posed.storage, before)


@pytest.mark.parametrize("layout", nvfp4.LAYOUTS)
class TestLibrary:
    def test_it_writes_what_the_law_says(self, layout):
        nvfp4.assert_writes("library/torch", nvfp4.problem("cpu", [5, -1, 128, 9], layout=layout))

    def test_torch_traces_the_call_and_checks_the_operator(self, layout):
        posed = changed(layout=layout)
        operator = getattr(torch.ops.kvexp, NVFP4_OP).default
        outcome = torch.library.opcheck(operator, (*posed.arguments, "torch", False))
        assert set(outcome.values()) == {"SUCCESS"}

    def test_a_function_of_one_s_own_is_verified_by_its_clauses(self, layout):
        def mine(*arguments):
            kvexp.reshape_and_cache_flash_nvfp4(*arguments, impl="torch")

        def writes_pages_token_by_token(*arguments):
            mine(*arguments[:-1], "HND" if layout == "NHD" else "NHD")

        chosen = {"op": NVFP4_OP, "layout": layout, "kv_cache_dtype": "nvfp4", "device": "cpu"}
        assert set(kvexp.verify(mine, **chosen).values()) == {"holds"}
        with pytest.raises(AssertionError, match=r"of kv_cache \(key\)"):
            kvexp.verify(writes_pages_token_by_token, **chosen)


def test_a_slot_past_the_last_is_found_where_it_is_asked_for():
    posed = changed(slot_mapping=torch.tensor([1, 128, 3]))
    with pytest.raises(ValueError, match=r"slot_mapping\[1\] is 128, past the last of the cache's 128 slots"):
        kvexp.reshape_and_cache_flash_nvfp4(*posed.arguments, impl="torch", check_slots=True)
