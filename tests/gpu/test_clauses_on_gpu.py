"""The clauses of the contract on a GPU, eagerly and in CUDA graphs: who breaks one is named."""

from dataclasses import replace

import pytest
import torch

from kvexp.bench import run_curve
from kvexp.bench.contract import FULL, NEEDED
from kvexp.bench.contract.ask import Asker
from kvexp.bench.contract.clauses import Subject, pose_clauses
from kvexp.impl import make
from tests.helpers import compose, tiny_curve
from tests.helpers.contract_breakers import BROKEN, ON_THE_HOST, SMALL_ALONE

MODES = ["cudagraph", "no_graph"]
SIZES = (1, 16, 300)
KINDS = [
    pytest.param(kind, mode, id=f"{kind}-{mode}")
    for kind in BROKEN
    for mode in MODES
    if mode == "no_graph" or kind not in ON_THE_HOST
]
OWN = [
    (op, layout, kv_cache_dtype)
    for op in compose.all_cache_writes()
    if op not in compose.cache_writes()
    for layout in compose.options("layout")
    if compose.takes(op, layout)
    for kv_cache_dtype in compose.op_formats(op)
]
"""Of each op with formats of its own a layout and a format."""
IN_LARGE = [kind for kind, clauses in BROKEN.items() if {*clauses} & {*NEEDED} and kind not in SMALL_ALONE]


def curve(mode, **chosen):
    made = tiny_curve.curve(num_blocks=64, num_tokens=SIZES, **chosen)
    return replace(made, device="cuda:0", mode=replace(made.mode, name=mode))


def found(made):
    case = next(made.cases())
    asked = Subject(
        make(made.impl, device="cuda:0"), make(made.op), make(made.layout), tiny_curve.source(made), case
    )
    with torch.cuda.stream(torch.cuda.Stream()):
        return pose_clauses(asked, SIZES)


def broken(contract):
    return tuple(finding.clause for finding in contract.findings if finding.outcome == "broken")


@pytest.mark.parametrize("impl", compose.implementations())
@pytest.mark.parametrize(("op", "layout", "kv_cache_dtype"), OWN)
def test_ours_keep_the_whole_contract_in_formats_of_an_op_s_own(impl, op, layout, kv_cache_dtype):
    sizes = {"num_layers": 2, **compose.sizes(op)}
    contract = found(
        curve("cudagraph", impl=impl, op=op, layout=layout, kv_cache_dtype=kv_cache_dtype, **sizes)
    )
    assert all(contract.column(size) == FULL for size in SIZES), contract


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_breaking_one_clause_is_told_and_nothing_else(kind, mode):
    contract = found(curve(mode, how="contract_breakers.Breaking", options={"kind": kind}))
    assert broken(contract) == BROKEN[kind], contract
    assert contract.sizes == SIZES


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [kind for kind in IN_LARGE if kind not in ON_THE_HOST])
def test_whoever_breaks_it_in_larger_calls_alone_is_found_at_the_curve_s_own_size(kind, mode):
    contract = found(curve(mode, how="contract_breakers.Breaking", options={"kind": kind, "least": 16}))
    assert broken(contract) == BROKEN[kind], contract


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_a_curve_of_whoever_breaks_what_engines_need_is_incorrect_at_every_point(kind, mode):
    """Others run beside it: who is incorrect is so before it would be timed, and who is not is not timed."""
    wrong = {*BROKEN[kind]} & {*NEEDED}
    clock = {"timer": "cuda_event"} if wrong else {}
    made = curve(mode, how="contract_breakers.Breaking", options={"kind": kind}, **clock)
    points = list(run_curve.run(made, {}, ask_contract=lambda: found(made)))
    assert {point.status for point in points} == {"incorrect" if wrong else "verified"}, points[0].reason
    assert {point.contract for point in points} == {", ".join(BROKEN[kind]) or FULL}


@pytest.mark.alone
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["honest", "wraps_past_end"])
def test_a_curve_of_whoever_keeps_what_engines_need_is_timed_and_told_the_rest(kind, mode):
    rule = {"warmup": 1, "min_samples": 3, "max_samples": 5}
    made = curve(
        mode, how="contract_breakers.Breaking", options={"kind": kind}, timer="cuda_event", rule=rule
    )
    for point in run_curve.run(made, {}, ask_contract=lambda: found(made)):
        assert (point.status, point.contract) == ("ok", ", ".join(BROKEN[kind]) or FULL), point.reason


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kv_cache_dtype", compose.formats())
@pytest.mark.parametrize(("op", "layout"), compose.pairs())
@pytest.mark.parametrize("impl", ["cuda", "triton", "torch"])
def test_ours_keep_all_of_it(impl, op, layout, kv_cache_dtype, mode):
    if impl == "triton" and kv_cache_dtype != "auto" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("impl=triton converts to fp8 from compute capability 9.0 on")
    contract = found(curve(mode, impl=impl, op=op, layout=layout, kv_cache_dtype=kv_cache_dtype))
    assert contract.column(300) == FULL, contract


@pytest.mark.parametrize("mode", MODES)
def test_an_error_that_nobody_looked_at_is_told_where_it_was_made_and_not_in_the_next_question(mode):
    contract = found(curve(mode, how="contract_breakers.FailingLaunch"))
    assert broken(contract) == ("no_tokens",), contract


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_a_kernel_that_traps_is_broken_and_the_rest_is_asked(mode, monkeypatch, tmp_path):
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path))
    asker = Asker()
    try:
        contract = asker.ask(curve(mode, how="contract_breakers.Trapping"))
    finally:
        asker.close()
    assert contract.column(300) == "past_end"
    (finding,) = (finding for finding in contract.findings if finding.outcome == "broken")
    assert finding.words.startswith("died with exit code ")
