"""Each clause names those who break it, and no other; whoever keeps the contract keeps all clauses."""

import re
from itertools import cycle, product

import pytest
import torch

from kvexp.bench.contract import CLAUSES, FULL, NEEDED, REFRESHED, SMALL, WRONG, describe_column
from kvexp.bench.contract.clauses import Subject, pose_clauses
from kvexp.impl import make
from tests.helpers import compose, tiny_curve
from tests.helpers.contract_breakers import (
    BROKEN,
    SMALL_ALONE,
    Breaking,
    Coding,
    Following,
    Refusing,
    Restoring,
    Sized,
)

SIZES = (1, 16, 50)
IN_LARGE = [kind for kind, clauses in BROKEN.items() if {*clauses} & {*NEEDED} and kind not in SMALL_ALONE]
ELEMENT = r"token \d, head \d, element \d+"


def asked(impl, **chosen):
    made = tiny_curve.curve(**chosen)
    case = next(made.cases())
    return Subject(impl, make(made.op), make(made.layout), tiny_curve.source(made), case)


def found(impl, sizes=SIZES, **chosen):
    return pose_clauses(asked(impl, **chosen), sizes)


def broken(contract):
    return tuple(finding.clause for finding in contract.findings if finding.outcome == "broken")


@pytest.mark.parametrize("kind", BROKEN)
def test_breaking_one_clause_is_told_and_nothing_else(kind):
    contract = found(Breaking("cpu", kind))
    assert broken(contract) == BROKEN[kind]
    assert contract.wrong == ()
    assert contract.sizes == SIZES
    assert contract.column(16) == (", ".join(BROKEN[kind]) or FULL)
    assert bool(contract.breach()) == any(clause in NEEDED for clause in BROKEN[kind])


@pytest.mark.parametrize("kind", IN_LARGE)
def test_whoever_breaks_it_in_larger_calls_alone_is_found_at_the_curve_s_own_size(kind):
    contract = found(Breaking("cpu", kind, least=16), sizes=(16, 50))
    assert broken(contract) == BROKEN[kind]
    (finding,) = (finding for finding in contract.findings if finding.outcome == "broken")
    assert finding.num_tokens in (16, 50)


@pytest.mark.parametrize(("first", "last"), [(7, 7), (1, 1), (17, 100), (16, 16)])
def test_wrong_bytes_in_calls_of_any_size_are_a_breach_at_all(first, last):
    contract = found(Sized("cpu", first, last))
    size = next(size for size in (SMALL, *SIZES) if first <= size <= last)
    assert contract.breach().startswith(f"the call {WRONG} (clause plain, {size} tokens): token ")


def test_whoever_restores_neighbours_as_they_were_is_wrong():
    assert ": a slot that no token has, head 0, element 0 of key_cache" in found(Restoring("cpu")).breach()


@pytest.mark.parametrize("how", ["overflows", "up"])
@pytest.mark.parametrize("dtype", ["half", "bfloat16", "float"])
def test_whoever_converts_some_values_wrong_breaks_that_clause(how, dtype):
    contract = found(Coding("cpu", how), sizes=(), dtype=dtype, kv_cache_dtype="fp8_e4m3")
    assert broken(contract) == ("special_values",)


@pytest.mark.parametrize("kind", ["ignores_negatives", "wraps_past_end"])
def test_what_is_only_told_is_found_in_larger_calls_as_well(kind):
    assert broken(found(Breaking("cpu", kind, least=16))) == BROKEN[kind]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (
            "ignores_padding",
            r"a slot that no token has, head 0, element 0 of key_cache \(slot 127\): 0x\w{4}",
        ),
        ("stale_slots", rf"{ELEMENT} of key_cache \(slot \d+\): 0x\w{{4}} instead of 0x\w{{4}}"),
        ("stale_values", rf"{ELEMENT} of value_cache \(slot \d+\): 0x\w{{4}} instead of 0x\w{{4}}"),
    ],
)
def test_the_sentence_names_the_clause_and_the_first_wrong_element(kind, place):
    (clause,) = BROKEN[kind]
    said = found(Breaking("cpu", kind)).breach()
    assert said.startswith(f"the call {CLAUSES[clause]} (clause {clause}, {SMALL} tokens): ")
    assert re.search(place, said), said


SCALES = [("auto", "per_tensor"), *product(["fp8_e4m3", "fp8_e5m2"], ["per_tensor", "per_head"])]
PAIRS = compose.pairs()


@pytest.mark.parametrize(("pair", "scales"), [*zip(PAIRS, cycle(SCALES), strict=False)], ids=str)
def test_our_torch_keeps_all_of_it(pair, scales):
    chosen = dict(zip(("op", "layout", "kv_cache_dtype", "scale"), (*pair, *scales), strict=True))
    impl = make(tiny_curve.curve().impl, device="cpu")
    assert found(impl, sizes=(1, 50), **chosen).column(50) == FULL


@pytest.mark.parametrize("op", compose.cache_writes())
def test_our_triton_keeps_all_of_it(op):
    impl = make(compose.experiment("impl=triton", "workload=tiny", "device=cpu").impl, device="cpu")
    assert found(impl, sizes=(16,), op=op).column(16) == FULL


@pytest.mark.parametrize(
    ("dtype", "num_layers", "block_size"),
    [("half", 3, 5), ("float", 1, 1), ("fp8_e4m3", 3, 16), ("fp8_e5m2", 1, 5)],
)
def test_every_type_and_any_block_can_be_asked(dtype, num_layers, block_size):
    chosen = {"dtype": dtype, "num_layers": num_layers, "block_size": block_size, "head_size": 7}
    kv_cache_dtype = dtype if dtype.startswith("fp8") else "auto"
    impl = make(tiny_curve.curve().impl, device="cpu")
    assert found(impl, kv_cache_dtype=kv_cache_dtype, **chosen).column(16) == FULL


@pytest.mark.parametrize("least", [16, 50])
def test_what_is_broken_only_where_clauses_come_together_is_found(least):
    contract = found(Breaking("cpu", "padding_or_extra_rows", least=least))
    (finding,) = (finding for finding in contract.findings if finding.outcome != "holds")
    assert (finding.clause, finding.num_tokens) == ("extra_rows", least)
    assert finding.words.startswith("together with padding: ")
    assert re.search(rf"{ELEMENT} of key_cache", finding.words)
    assert contract.breach()


@pytest.mark.parametrize("what", ["padding", "misaligned"])
def test_what_is_refused_is_a_refusal(what):
    contract = found(Refusing("cpu", what))
    refused = [finding for finding in contract.findings if finding.outcome == "refused"]
    assert [finding.clause for finding in refused] == [what]
    assert refused[0].words == f"impl=refusing takes no call of {what}"
    assert contract.column(16) == f"refuses {what}"
    assert contract.breach() == ""


@pytest.mark.parametrize("what", ["padding", "strided_rows"])
def test_what_is_refused_in_larger_calls_alone_is_a_refusal(what):
    contract = found(Refusing("cpu", what, least=16))
    assert [(found.clause, found.num_tokens) for found in contract.findings if found.outcome != "holds"] == [
        (what, 16)
    ]
    assert contract.column(16) == f"refuses {what}"


def test_a_lack_of_memory_is_nobody_s_breach():
    with pytest.raises(torch.OutOfMemoryError, match="others have it"):
        found(Breaking("cpu", "out_of_memory"))


def test_whoever_refuses_everything_is_not_asked_further():
    contract = found(Refusing("cpu", "everything"))
    assert contract.findings == ()
    assert [finding.outcome for finding in contract.wrong] == ["refused"]
    assert contract.column(16) is None


def test_one_that_must_be_told_of_changes_is_and_that_is_said():
    contract = found(Following("cpu"))
    assert broken(contract) == ()
    assert contract.column(16) == REFRESHED


def test_a_workload_that_needs_a_clause_makes_it_one_that_counts():
    contract = found(Breaking("cpu", "aligned_rows"))
    assert contract.breach() == ""
    assert contract.breach(["misaligned"]).startswith("the call needs aligned addresses (clause misaligned")


def test_words_say_what_a_column_means():
    assert describe_column(None) == describe_column(FULL) == ""
    assert describe_column("past_end, misaligned") == "writes slots past the end; needs aligned addresses"
    assert describe_column("refuses padding, needs refresh()") == "refuses padding; needs refresh()"


def test_every_clause_is_in_the_contract_s_document():
    from pathlib import Path

    text = Path("docs/semantics.md").read_text()
    assert [clause for clause in CLAUSES if f"`{clause}`" not in text] == []


def test_nothing_outside_the_posed_memory_is_touched_by_what_it_provokes():
    """A slot past the end, or before the begin, lies in guard blocks that are ours."""
    from kvexp.bench.contract.question_tensors import GUARD_BLOCKS, QuestionTensors
    from kvexp.bench.contract.questions import Question

    made = asked(None, block_size=4)
    for question in (Question(past_end=True), Question(negatives=True), Question(padding=True)):
        seeded = torch.Generator().manual_seed(0)
        posed = QuestionTensors(made.case, made.op, made.layout, made.source, question, seeded)
        reach = GUARD_BLOCKS * 4
        assert int(posed.slot_mapping.min()) >= -reach
        assert int(posed.slot_mapping.max()) < posed.num_blocks * 4 + reach
