"""docs/support.md on this GPU: what it does is verified, what it refuses skipped with the page's reason."""

from dataclasses import asdict, replace

import pytest
import torch

from kvexp.bench import run_curve
from tests.helpers import compose, support, tiny_curve

DEVICE = "cuda:0"


def expected(impl, kind):
    if sentence := support.find_refusal(kind):
        return "skipped", sentence
    capability = torch.cuda.get_device_capability()
    if impl == "triton" and kind.converts and capability < (9, 0):
        return "skipped", support.triton_refuses(capability)
    return "verified", "timer=none: not timed"


@pytest.mark.parametrize("layout", compose.layouts())
@pytest.mark.parametrize("op", compose.cache_writes())
@pytest.mark.parametrize("impl", support.IMPLS)
def test_every_combination_comes_to_what_the_page_says(impl, op, layout):
    kinds = [kind for kind in support.list_kinds(op) if kind.layout == layout]
    for kind in kinds:
        made = tiny_curve.curve(impl=impl, num_tokens=19, mode="auto", **asdict(kind))
        made = replace(made, device=DEVICE, mode=compose.choice("mode", "auto")).resolve(DEVICE)
        (point,) = run_curve.run(made, {})
        assert (point.status, point.reason) == expected(impl, kind), (impl, kind)
    assert kinds
