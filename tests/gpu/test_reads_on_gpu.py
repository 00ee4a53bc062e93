"""Ops that read a cache, on a GPU: every layout and type is right, and what is wrong is found."""

from dataclasses import replace
from itertools import product

import pytest

from kvexp.bench import environment, run_curve
from kvexp.experiment import Choice
from tests.helpers import compose

LAYOUTS = [name for name in compose.layouts() if name != "head_major"]
DTYPES, FORMATS = ("half", "bfloat16", "float"), ("auto", "fp8_e4m3", "fp8_e5m2")
TYPES = [(DTYPES[i], FORMATS[(i + turn) % 3]) for i in range(3) for turn in range(3)]
"""All pairs; each third one, from any on, has every type and every format."""
TRANSFER = (
    "op=transfer",
    "workload=llama3_8b",
    "workload.num_blocks=1024",
    "workload.num_tokens=[1,40,2048]",
)
DECODE = (
    "op=paged_decode",
    "workload=qwen3_14b",
    "workload.num_blocks=2048",
    "workload.num_tokens=[1,3,16]",
    "workload.context=1000",
)
WRONG = {
    "transfer": ("HeadTooFar", "BlockTooFar", "OneBlockMore", "KeysAlone", "OldBlocks", "Emptying"),
    "paged_decode": ("OldTable", "OldPast", "Spilling"),
}


def measured(*overrides):
    made = compose.experiment(*overrides).resolve("cuda:0")
    return list(run_curve.run(made, environment.read("cuda:0")))


def assert_right(*overrides, status="verified"):
    for point in measured(*overrides):
        assert point.status == status, point.reason


@pytest.mark.parametrize(
    ("mode", "ranks"),
    [
        ("cudagraph", (1, 2)),
        ("no_graph", (1, 2)),
        ("no_graph", (1, 8)),
        ("no_graph", (2, 1)),
        ("no_graph", (1, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("impl", ["cuda", "torch"])
def test_transfers_are_right(impl, layout, ranks, mode):
    tp_from, tp_to = ranks
    sizes = (f"workload.tp_from={tp_from}", f"workload.tp_to={tp_to}", "workload.num_layers=3")
    assert_right(*TRANSFER, *sizes, f"impl={impl}", f"layout={layout}", f"mode={mode}", "timer=none")


@pytest.mark.parametrize(
    ("layout", "chosen"), compose.by_turns(LAYOUTS, list(product([45, 46, 100], ["auto", "fp8"])), 3)
)
def test_transfers_of_any_head_size_are_right(layout, chosen):
    head_size, kv_cache_dtype = chosen
    sizes = (f"workload.head_size={head_size}", f"kv_cache_dtype={kv_cache_dtype}", f"layout={layout}")
    assert_right(*TRANSFER, *sizes, "impl=cuda", "timer=none")


@pytest.mark.parametrize(("layout", "types"), compose.by_turns(LAYOUTS, TYPES, 3))
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_decodes_are_right(impl, layout, types):
    dtype, kv_cache_dtype = types
    chosen = (f"dtype={dtype}", f"kv_cache_dtype={kv_cache_dtype}", f"layout={layout}", "mode=no_graph")
    assert_right(*DECODE, *chosen, f"impl={impl}", "timer=none")


@pytest.mark.parametrize(("layout", "kv_cache_dtype"), compose.by_turns(LAYOUTS, ["auto", "fp8_e4m3"], 2))
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_captured_decodes_are_right(impl, layout, kv_cache_dtype):
    chosen = (f"kv_cache_dtype={kv_cache_dtype}", f"layout={layout}", "mode=cudagraph")
    assert_right(*DECODE, *chosen, f"impl={impl}", "timer=none")


@pytest.mark.parametrize(
    "sizes",
    [
        "workload.context=1",
        "workload.context=65 workload.num_heads=1",
        "workload.head_size=80",
        "scale=per_head kv_cache_dtype=fp8",
        "workload.num_query_heads=8 workload.num_heads=8",
        "workload.block_size=1 workload.num_blocks=20000",
    ],
)
def test_decodes_of_any_size_are_right(sizes):
    assert_right(*DECODE, *sizes.split(), "impl=triton", "timer=none")


@pytest.mark.parametrize(("op", "how"), [(op, how) for op, names in WRONG.items() for how in names])
@pytest.mark.parametrize("mode", ["cudagraph", "no_graph"])
def test_wrong_ones_are_incorrect(op, how, mode):
    usual, module = {"transfer": (TRANSFER, "wrong_transfers"), "paged_decode": (DECODE, "wrong_decodes")}[op]
    made = compose.experiment(*usual, "impl=torch", f"mode={mode}", "timer=none").resolve("cuda:0")
    wrong = replace(made, impl=Choice(how, f"tests.helpers.{module}.{how}"))
    for point in run_curve.run(wrong, environment.read("cuda:0")):
        # What reads numbers on the host cannot be captured.
        assert point.status == "incorrect" or (mode == "cudagraph" and point.status == "failed"), point.reason


@pytest.mark.parametrize(
    "overrides", [(*TRANSFER, "impl=cuda"), (*DECODE, "impl=triton")], ids=["transfer", "decode"]
)
@pytest.mark.alone
def test_they_are_timed_beside_an_equal_copy(overrides):
    for point in measured(*overrides, "timer.max_seconds=0.2"):
        assert point.status == "ok", point.reason
        assert point.copy_us
