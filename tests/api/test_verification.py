"""kvexp.verify: any function of a library signature is held to the contract, clause by clause."""

import re
from pathlib import Path

import pytest
import torch

import kvexp
from kvexp.bench.contract import CLAUSES
from tests.helpers.contract_breakers import BROKEN, Breaking

FLASH = "reshape_and_cache_flash"


def library(op):
    def function(*arguments):
        getattr(kvexp, op)(*arguments, impl="torch")

    return function


PLACE = r"(?:that no token has|token \d+), head \d, element \d+ of \w+_cache \(slot -?\d+\): 0x\w{4} instead"
SEEN = ("cuts_slots", "fails_without_tokens", "drops_nan")
"""Kinds that break several clauses, raise an error, and write wrong values; the rest: test_clauses.py."""


def breaking(kind):
    """A function that breaks one clause; it is bound anew in each call, so it keeps nothing."""

    def function(*arguments):
        Breaking("cpu", kind).reshape_and_cache_flash(*arguments)()

    return function


@pytest.mark.parametrize(
    ("op", "layout", "kv_cache_dtype"),
    [
        (FLASH, "NHD", "fp8"),
        ("reshape_and_cache_flash_diffkv", "HND_packed", "auto"),
        ("reshape_and_cache", "head_major", "fp8_e5m2"),
    ],
)
def test_the_library_keeps_all_of_it(op, layout, kv_cache_dtype):
    found = kvexp.verify(library(op), op=op, layout=layout, kv_cache_dtype=kv_cache_dtype, device="cpu")
    assert found == dict.fromkeys(CLAUSES, "holds")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2])
def test_every_type_can_be_asked(dtype):
    kv_cache_dtype = "fp8_e5m2" if dtype.itemsize == 1 else "auto"
    chosen = {"op": FLASH, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "device": "cpu"}
    assert set(kvexp.verify(library(FLASH), **chosen).values()) == {"holds"}


@pytest.mark.parametrize("kind", SEEN)
def test_each_broken_clause_is_named_with_its_first_wrong_element(kind):
    with pytest.raises(AssertionError) as raised:
        kvexp.verify(breaking(kind), op=FLASH, device="cpu")
    for clause, line in zip(BROKEN[kind], str(raised.value).splitlines(), strict=True):
        assert line.startswith(f"function {CLAUSES[clause]} (clause {clause}, ")
        if clause != "no_tokens":
            assert re.search(PLACE, line)
    rest = kvexp.verify(breaking(kind), op=FLASH, device="cpu", skip=BROKEN[kind])
    assert rest == dict.fromkeys([name for name in CLAUSES if name not in BROKEN[kind]], "holds")


def test_a_function_that_keeps_what_it_saw_first_breaks_what_is_fresh():
    kept = {}

    def function(key, value, key_cache, value_cache, slots, *others):
        first = kept.setdefault((key.data_ptr(), len(slots), key_cache.data_ptr()), key.clone())
        if first.shape == key.shape:
            key = first
        kvexp.reshape_and_cache_flash(key, value, key_cache, value_cache, slots, *others, impl="torch")

    with pytest.raises(AssertionError, match=r"keeps the keys, values or scales .* \(clause fresh_inputs"):
        kvexp.verify(function, op=FLASH, device="cpu")


def test_a_refusal_is_returned_with_its_reason():
    def function(key, *others):
        if key.data_ptr() % 16:
            raise ValueError("key must be aligned")
        if not others[3].shape[0]:
            raise NotImplementedError("no tokens")
        kvexp.reshape_and_cache_flash(key, *others, impl="torch")

    found = kvexp.verify(function, op=FLASH, device="cpu")
    assert found["misaligned"] == "refused: key must be aligned"
    assert found["no_tokens"] == "refused: no tokens"
    assert {found[clause] for clause in CLAUSES if clause not in ("misaligned", "no_tokens")} == {"holds"}


@pytest.mark.parametrize(("most", "num_tokens"), [(-1, 7), (6, 7), (100, 300)])
def test_a_function_that_refuses_plain_calls_does_not_pass(most, num_tokens):
    def function(*arguments):
        if len(arguments[4]) > most:
            raise NotImplementedError("not on this machine")
        library(FLASH)(*arguments)

    with pytest.raises(AssertionError, match=f"function refuses a plain call of {num_tokens} tokens: not on"):
        kvexp.verify(function, op=FLASH, device="cpu")


def test_clauses_that_are_all_refused_or_left_out_leave_plain_calls():
    def function(*arguments):
        if bool((arguments[4] < 0).any()):
            raise ValueError("no padding here")
        library(FLASH)(*arguments)

    others = [clause for clause in CLAUSES if clause != "padding"]
    found = kvexp.verify(function, op=FLASH, device="cpu", skip=others)
    assert found == {"padding": "refused: no padding here"}
    assert kvexp.verify(function, op=FLASH, device="cpu", skip=CLAUSES) == {}


def test_a_function_that_is_wrong_in_plain_calls_does_not_pass():
    with pytest.raises(AssertionError, match=r"writes wrong bytes \(clause plain, 7 tokens\): token 0"):
        kvexp.verify(lambda *_: None, op=FLASH, device="cpu")


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"op": "reshape"}, "op must be one of concat_and_cache_mla, .*, not 'reshape'"),
        ({"layout": "NDH"}, "layout 'NDH' is not one of NHD, "),
        ({"layout": "head_major"}, "which layout=head_major does not have; try layout=NHD"),
        ({"dtype": torch.int8}, "dtype must be one of torch.float16, .*, not torch.int8"),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype must be one of auto, .*, not 'int4'"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N, not 'gpu'"),
        ({"device": "meta"}, "device must be one of cpu, cuda, not 'meta'"),
        ({"device": "cuda:99"}, "device=cuda:99 was asked for and this machine has "),
        ({"skip": ["past"]}, "skip must be one of padding, .*, not 'past'"),
    ],
)
def test_invalid_arguments_are_refused_with_the_valid_ones(chosen, sentence):
    with pytest.raises(ValueError, match=sentence):
        kvexp.verify(library(FLASH), **{"op": FLASH, "device": "cpu", **chosen})


def test_the_example_in_the_documents_passes_as_a_test():
    text = Path("docs/library.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "kvexp.verify(" in code)
    names = {}
    exec(example, names)
    example = names["test_my_kernel_keeps_the_contract"]
    chosen = {mark.args[0]: mark.args[1] for mark in example.pytestmark}
    for values in zip(*chosen.values(), strict=True):
        example(**dict(zip(chosen, values, strict=True)))
