"""docs/support.md on this GPU: every combination is `ok`, or skipped with the reason that the page gives."""

from collections import Counter
from dataclasses import asdict, replace

import pytest
import torch

from kvexp import pipeline
from tests import composed, support, tiny

DEVICE = "cuda:0"
QUICK = {"warmup": 1, "min_samples": 2, "max_samples": 2, "max_seconds": 0.05}


def expected(impl, kind):
    if sentence := support.refusal(kind):
        return "skipped", sentence
    capability = torch.cuda.get_device_capability()
    if impl == "triton" and kind.converts and capability < (9, 0):
        return "skipped", support.triton_refuses(capability)
    return "ok", ""


@pytest.mark.parametrize("op", composed.options("op"))
@pytest.mark.parametrize("impl", support.IMPLS)
def test_every_combination_comes_to_what_the_page_says(impl, op):
    timer = composed.choice("timer", "auto")
    seen: Counter[str] = Counter()
    for kind in support.kinds(op):
        made = tiny.curve(impl=impl, num_tokens=19, timer="auto", mode="auto", rule=QUICK, **asdict(kind))
        made = replace(made, timer=replace(timer, options=made.timer.options), device=DEVICE)
        made = replace(made, mode=composed.choice("mode", "auto")).resolved(DEVICE)
        (point,) = pipeline.run(made, {})
        assert (point.status, point.reason) == expected(impl, kind), (impl, kind)
        seen[point.status] += 1
    assert seen["ok"] > 0
    assert seen.total() == len(list(support.kinds(op)))
