"""docs/support.md says what the code says, and what a run comes to is what it says."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from kvexp.bench import run_curve
from tests.helpers import compose, support, tiny_curve

PAGE = Path(__file__).resolve().parents[1] / "docs" / "support.md"

VERIFIED = {
    "concat_and_cache_mla": {"torch": 5 + 6 + 2},
    "indexer_k_quant_and_cache": {"torch": 2, "triton": 0},
    "reshape_and_cache_flash_nvfp4": {"torch": 2, "triton": 2},
    "reshape_and_cache_flash_per_token_head": {"torch": 6, "triton": 3},
}
"""Kinds that a CPU verifies in each layout, where they are not those of `reshape_and_cache_flash`.

Those are 3 types copied as they are, 2 of 8 bits, and 3 converted to 2 formats by 2 scales. Rows without
heads are converted by one scale, and 2 types to a third format. Heads with their own scales are 3 types in 2
formats, of which Triton's interpreter has int8. An indexer's keys are 2 types in one format, and so are items
of 4 bits, which the interpreter has.
"""

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets where there is no GPU")


@pytest.fixture(scope="module")
def text():
    return support.text()


def test_the_page_is_what_the_code_says(text):
    assert PAGE.read_text("utf-8") == text, "write it: python -m tests.helpers.support > docs/support.md"


def test_the_page_knows_every_option(text):
    for group in support.GROUPS:
        for option in compose.options(group):
            assert f"`{option}`" in text
    assert set(support.IMPLS) == set(compose.implementations())


def test_each_sentence_is_there_once_and_each_number_has_one(text):
    *_, refusals = text.partition("## What is refused")
    lines = [line.partition(". ") for line in refusals.splitlines() if line[:1].isdigit()]
    assert [int(number) for number, _, _ in lines] == list(range(1, len(lines) + 1))
    assert max(Counter(sentence for _, _, sentence in lines).values()) == 1
    for number, _, _ in lines:
        assert f"[{number}]" in text
    assert f"[{len(lines) + 1}]" not in text


@interpreted
@pytest.mark.parametrize("op", compose.all_cache_writes())
@pytest.mark.parametrize("impl", support.IMPLS)
def test_every_combination_comes_to_what_the_page_says(impl, op):
    """Each is verified byte for byte, or skipped with exactly that reason."""
    seen: Counter[str] = Counter()
    sizes = compose.sizes(op)
    for kind in support.list_kinds(op):
        (point,) = run_curve.run(tiny_curve.curve(impl=impl, num_tokens=5, **asdict(kind), **sizes), {})
        assert (point.status, point.reason) == support.expect_on_cpu(impl, kind), (impl, kind)
        seen[point.status] += 1
    verified = {"cuda": 0, "torch": 5 + 12, "triton": 5} | VERIFIED.get(op, {})
    layouts = sum(compose.takes(op, layout) for layout in compose.options("layout"))
    assert seen["verified"] == layouts * verified[impl]
    assert seen.total() == len(list(support.list_kinds(op)))


@interpreted
def test_fp8_comes_to_what_fp8_e4m3_does():
    for impl in support.IMPLS:
        chosen = [tiny_curve.curve(impl=impl, kv_cache_dtype=name) for name in ("fp8", "fp8_e4m3")]
        one, other = ([(p.status, p.reason, p.case) for p in run_curve.run(made, {})] for made in chosen)
        assert one == other
