"""Curves of the sizes that the timed tests have, verified and not timed: they can run side by side."""

import pytest

from kvexp.bench import run_curve
from tests.helpers import compose

SIZES = ("workload=quickstart", "workload.num_tokens=[1,64,1024]", "timer=none")
PATTERNS = [
    "workload.slots=decode",
    "workload.slots=prefill",
    "workload.slots=reversed",
    "workload.padding=0.5",
    "workload.padding=0.3 workload.padding_at=scattered",
    "workload.rows=qkv",
    "workload.rows=misaligned workload.extra_tokens=5",
    "workload.num_layers=3",
]


def verify(*overrides):
    made = compose.experiment(*SIZES, *overrides).resolve("cuda:0")
    for point in run_curve.run(made, {}):
        assert point.status == "verified", point.reason


@pytest.mark.parametrize("mode", ["cudagraph", "no_graph"])
@pytest.mark.parametrize(("op", "layout"), compose.pairs())
@pytest.mark.parametrize("impl", compose.implementations())
def test_every_point_is_right(impl, op, layout, mode):
    verify(f"impl={impl}", f"op={op}", f"layout={layout}", f"mode={mode}")


@pytest.mark.parametrize("chosen", PATTERNS)
@pytest.mark.parametrize("op", compose.cache_writes())
@pytest.mark.parametrize("impl", compose.implementations())
def test_every_pattern_is_right(impl, op, chosen):
    verify(f"impl={impl}", f"op={op}", *chosen.split())


@pytest.mark.parametrize("op", compose.cache_writes())
@pytest.mark.parametrize(
    "chosen", ["kv_cache_dtype=fp8 scale=per_head", "kv_cache_dtype=fp8_e5m2 dtype=fp8_e5m2"]
)
@pytest.mark.parametrize("impl", compose.implementations())
def test_fp8_is_right(impl, chosen, op):
    verify(f"impl={impl}", f"op={op}", *chosen.split())
