"""Check what kvexp.concat_and_cache_mla refuses, each in one sentence that names the argument."""

from dataclasses import replace

import pytest
import torch

import kvexp
from tests.helpers import latent
from tests.helpers.latent import DS_MLA

ROWS = torch.zeros(3, 512, dtype=torch.bfloat16)


def changed(kv_cache_dtype="auto", **arguments):
    posed = latent.problem("cpu", [5, 1, 9], kv_cache_dtype=kv_cache_dtype)
    return replace(posed, **arguments)


@pytest.mark.parametrize(
    ("posed", "kind", "sentence"),
    [
        (changed(kv_c=[1.0]), TypeError, "kv_c must be a torch.Tensor, not list"),
        (changed(kv_c=ROWS.unsqueeze(1)), ValueError, "kv_c must be [num_tokens, R], not [3, 1, 512]"),
        (changed(k_pe=ROWS[0]), ValueError, "k_pe must be [num_tokens, P], not [512]"),
        (changed(kv_c=ROWS[:, :0]), ValueError, "kv_c must have elements, not [3, 0]"),
        (
            changed(k_pe=ROWS[:2, :64]), ValueError,
            "k_pe must have a row for each of the 3 tokens of slot_mapping, not 2",
        ),
        (
            changed(kv_c=ROWS.repeat(1, 2)[:, ::2]), ValueError,
            "kv_c must have a contiguous last dim, not the strides (1024, 2)",
        ),
        (changed(k_pe=ROWS[:, :64].half()), TypeError, "k_pe must be bfloat16 as kv_c is, not float16"),
        (changed(kv_c=ROWS.int()), TypeError,
         "kv_c must be one of float16, bfloat16, float32, float8_e4m3fn, float8_e5m2, not int32"),
        (
            changed(kv_cache=torch.zeros(8, 16, 1, 576, dtype=torch.bfloat16)), ValueError,
            "kv_cache must be [num_blocks, block_size, 576] (R + P), not [8, 16, 1, 576]",
        ),
        (
            changed(DS_MLA, kv_cache=torch.zeros(8, 16, 576, dtype=torch.uint8)), ValueError,
            "kv_cache must be [num_blocks, block_size, 656] (bytes), not [8, 16, 576]",
        ),
        (
            changed(DS_MLA, kv_cache=torch.zeros(8, 16, 656, dtype=torch.float8_e4m3fn)), TypeError,
            "kv_cache must be uint8 for kv_cache_dtype=fp8_ds_mla, not float8_e4m3fn",
        ),
        (
            changed(DS_MLA, kv_c=ROWS[:, :256]), ValueError,
            "kv_cache_dtype=fp8_ds_mla takes kv_c of 512 and k_pe of 64 or 0 elements, not 256 and 64",
        ),
        (
            changed(DS_MLA, kv_c=ROWS.float(), k_pe=ROWS[:, :64].float()), TypeError,
            "kv_c must be float16 or bfloat16 for kv_cache_dtype=fp8_ds_mla, not float32",
        ),
        (
            replace(changed(), kv_cache_dtype="int4"), ValueError,
            "kv_cache_dtype must be one of auto, fp8, fp8_e4m3, fp8_e5m2, fp8_ds_mla, not 'int4'",
        ),
        (
            changed("fp8_e4m3", scale=None), TypeError,
            "scale must be a float32 tensor for an fp8 cache, not None",
        ),
        (
            changed("fp8_e4m3", scale=torch.ones(2)), ValueError, "scale must have one element, not [2]",
        ),
        (changed(DS_MLA, scale=1.0), TypeError, "scale must be a torch.Tensor or None, not float"),
        (
            changed(kv_cache=torch.zeros(1, 1, 576, dtype=torch.bfloat16).expand(8, 16, 576)), ValueError,
            "kv_cache must have memory of its own for each element, not the strides (0, 0, 1)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_is_named(posed, kind, sentence):
    before = posed.storage.clone()
    with pytest.raises(kind) as raised:
        kvexp.concat_and_cache_mla(*posed.arguments, impl="torch")
    assert str(raised.value) == sentence
    assert torch.equal(posed.storage, before)


def test_no_other_op_has_the_format_of_latent_rows():
    cache = kvexp.allocate("NHD", num_blocks=2, block_size=4, num_heads=2, head_size=16, device="cpu")
    rows = torch.zeros(1, 2, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="must be one of auto, fp8, fp8_e4m3, fp8_e5m2, not 'fp8_ds_mla'"):
        kvexp.reshape_and_cache_flash(rows, rows, *cache[:2], torch.tensor([1]), DS_MLA, impl="torch")


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e4m3", DS_MLA])
def test_torch_traces_the_call_and_checks_the_operator(kv_cache_dtype):
    posed = changed(kv_cache_dtype)
    outcome = torch.library.opcheck(
        torch.ops.kvexp.concat_and_cache_mla.default, (*posed.arguments, "torch", False)
    )
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8", DS_MLA])
def test_a_function_of_one_s_own_is_verified_by_its_clauses(kv_cache_dtype):
    def mine(*arguments):
        kvexp.concat_and_cache_mla(*arguments, impl="torch")

    def forgets_k_pe(kv_c, k_pe, *others):
        kvexp.concat_and_cache_mla(kv_c, torch.zeros_like(k_pe), *others, impl="torch")

    chosen = {"op": latent.MLA, "layout": "mla", "kv_cache_dtype": kv_cache_dtype, "device": "cpu"}
    assert set(kvexp.verify(mine, **chosen).values()) == {"holds"}
    with pytest.raises(AssertionError, match=r"element 0 of kv_cache \(k_pe\)"):
        kvexp.verify(forgets_k_pe, **chosen)


def test_a_slot_past_the_last_is_found_where_it_is_asked_for():
    posed = replace(changed(), slot_mapping=torch.tensor([1, 128, 3]))
    with pytest.raises(ValueError, match=r"slot_mapping\[1\] is 128, past the last of the cache's 128 slots"):
        kvexp.concat_and_cache_mla(*posed.arguments, impl="torch", check_slots=True)
