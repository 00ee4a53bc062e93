"""Write docs/support.md, what is written and what is refused, from the code.

`python -m tests.helpers.support > docs/support.md` writes it; tests/test_support.py compares the file, and
the outcome of a run on a CPU, with this text.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import pytest

from kvexp.errors import Unsupported
from kvexp.impl import make
from kvexp.op import FP8
from tests.helpers import compose, oracle, tiny_curve

GROUPS = ("op", "layout", "dtype", "kv_cache_dtype", "scale")
IMPLS = ("cuda", "triton", "torch")
HEAD_SIZES = (
    ("bfloat16", "auto", 40, 40),
    ("bfloat16", "auto", 44, 44),
    ("float", "auto", 44, 44),
    ("float", "auto", 45, 45),
    ("bfloat16", "fp8_e4m3", 48, 48),
    ("bfloat16", "fp8_e4m3", 40, 40),
    ("bfloat16", "fp8_e4m3", 45, 45),
    ("bfloat16", "auto", 192, 128),
    ("bfloat16", "int8_per_token_head", 45, 45),
    ("bfloat16", "fp8_per_token_head", 192, 128),
    ("bfloat16", "nvfp4", 48, 48),
    ("bfloat16", "nvfp4", 40, 40),
)
"""dtype, kv_cache_dtype, head_size and head_size_v on both sides of the ops' limits."""


@dataclass(frozen=True)
class Kind:
    """One choice of each group that decides what is written where."""

    op: str
    layout: str
    dtype: str
    kv_cache_dtype: str
    scale: str

    @property
    def converts(self) -> bool:
        """Say whether rows are converted to codes of 8 bits."""
        return self.kv_cache_dtype != "auto" and self.dtype not in FP8

    @property
    def becomes_fp8(self) -> bool:
        """Say whether they are converted to 8-bit floats."""
        return self.converts and "fp8" in self.kv_cache_dtype


def list_kinds(op: str) -> Iterator[Kind]:
    """Yield every kind of an op in conf/, with `fp8` resolved."""
    scales = compose.options("scale")
    others = (compose.options("layout"), compose.options("dtype"), compose.all_formats(), scales)
    return (Kind(op, *chosen) for chosen in product(*others))


def find_refusal(kind: Kind, **sizes: Any) -> str:
    """Return why the op refuses the kind on every machine; empty when it takes it."""
    made = tiny_curve.curve(**{group: getattr(kind, group) for group in GROUPS}, num_tokens=1)
    case = replace(next(made.cases()), **compose.sizes(kind.op) | sizes)
    return _sentence(lambda: make(made.op).check(case, make(made.layout), tiny_curve.source(made).itemsize))


@cache
def without_gpu() -> str:
    """Return why cuda refuses everything on a CPU."""
    return _sentence(lambda: make(compose.choice("impl", "cuda"), device="cpu"))


@cache
def triton_refuses(capability: tuple[int, int] | None) -> str:
    """Return why triton refuses to convert on a GPU of this capability, or for None on a CPU."""
    posed = oracle.problem("cpu", [0], kv_cache_dtype="fp8", layout="NHD")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TRITON_INTERPRET", "1")
        triton = make(compose.choice("impl", "triton"), device="cpu")
        triton.interpreted, triton.capability = capability is None, capability
        return _sentence(lambda: posed.bind(triton))


def expect_on_cpu(impl: str, kind: Kind) -> tuple[str, str]:
    """Return status and reason of a point that is verified and not timed."""
    if impl == "cuda":
        return "skipped", without_gpu()
    if sentence := find_refusal(kind):
        return "skipped", sentence
    if impl == "triton" and kind.becomes_fp8:
        return "skipped", triton_refuses(None)
    interpreted = "interpreted: Triton's interpreter is no measure of the kernel"
    return "verified", interpreted if impl == "triton" else "timer=none: not timed"


def text() -> str:
    """Return the page."""
    said = Refusals()
    parts = [_ABOUT, _layouts(said), _types(said), _sizes(said), _machines(said), said.text()]
    return "\n".join(parts)


class Refusals:
    """The sentences in order of their first use, each once, with numbers."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def number(self, sentence: str) -> str:
        """Return the sentence's number in brackets."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)
        return f"[{self.sentences.index(sentence) + 1}]"

    def text(self) -> str:
        """Return the section of all sentences."""
        lines = [f"{number}. {sentence}" for number, sentence in enumerate(self.sentences, start=1)]
        return "\n".join(["## What is refused, and why", "", *lines, ""])


def _layouts(said: Refusals) -> str:
    layouts = compose.options("layout")
    rows = []
    for op in compose.options("op"):
        usual = compose.op_formats(op)[0]
        plain = (Kind(op, layout, "bfloat16", usual, "per_tensor") for layout in layouts)
        rows.append([f"`{op}`", *(_mark(find_refusal(kind), said) for kind in plain)])
    return "\n".join(["## Layouts", "", _table(["op", *(f"`{name}`" for name in layouts)], rows), ""])


def _types(said: Refusals) -> str:
    """Return one table for all ops and layouts that share it."""
    found: dict[str, list[str]] = {}
    layouts = compose.options("layout")
    pairs = product(compose.all_cache_writes(), layouts)
    for op, layout in (pair for pair in pairs if compose.takes(*pair)):
        found.setdefault(_types_of(op, layout, said), []).append(op)
    lines = ["## Types", ""]
    for table, ops in found.items():
        which = dict.fromkeys(ops)
        every = len(which) == len(compose.all_cache_writes())
        named = ", ".join(f"`{op}`" for op in which)
        whose = "Every op that writes a cache, in each of its layouts" if every else named
        lines += [
            f"{whose}; down: `dtype`, the type of key and value; across: `kv_cache_dtype`.",
            "",
            table,
            "",
        ]
    return "\n".join([*lines, _SCALES, ""])


def _types_of(op: str, layout: str, said: Refusals) -> str:
    rows = []
    own, others = (
        [kind for kind in compose.all_formats() if (kind in compose.op_formats(op)) == is_own]
        for is_own in (True, False)
    )
    for dtype in sorted(compose.options("dtype"), key=lambda name: (name in FP8, name)):
        kinds = (Kind(op, layout, dtype, kind, "per_tensor") for kind in (*own, others[0]))
        rows.append([f"`{dtype}`", *(_cell(kind, said) for kind in kinds)])
    return _table(["", *(f"`{kind}`" for kind in own), f"others, as `{others[0]}`"], rows)


def _cell(kind: Kind, said: Refusals) -> str:
    """Describe a type: copied, converted by which scales, or refused."""
    refused = {scale: find_refusal(replace(kind, scale=scale)) for scale in compose.options("scale")}
    scales = sorted((scale for scale in refused if not refused[scale]), reverse=True)
    numbers = ", ".join(dict.fromkeys(said.number(sentence) for sentence in refused.values() if sentence))
    if not scales:
        return f"no {numbers}"
    if kind.converts:
        words = " or ".join(scales) if make(compose.choice("op", kind.op)).scales else "own scales"
        return f"converted, {words} {numbers}".rstrip()
    return f"copied; not {' '.join(s for s in refused if refused[s])} {numbers}" if numbers else "copied"


def _sizes(said: Refusals) -> str:
    rows = []
    for dtype, kv_cache_dtype, head_size, head_size_v in HEAD_SIZES:
        row = [f"{head_size}" if head_size == head_size_v else f"K {head_size}, V {head_size_v}"]
        row += [f"`{dtype}`", f"`{kv_cache_dtype}`"]
        for op in compose.options("op"):
            kind = Kind(op, compose.layout_of(op), dtype, kv_cache_dtype, "per_tensor")
            has_it = kv_cache_dtype in compose.op_formats(op)
            sentence = find_refusal(kind, head_size=head_size, head_size_v=head_size_v) if has_it else ""
            row.append(_mark(sentence, said) if has_it else "")
        rows.append(row)
    ops = (f"`{op}`" for op in compose.options("op"))
    table = _table(["head_size", "dtype", "kv_cache_dtype", *ops], rows)
    about = "For example; the sentences give the rules. No word: the op has no such format."
    return "\n".join(["## Head sizes", "", about, "", table, ""])


def _machines(said: Refusals) -> str:
    # The rest of the sentence is about this machine.
    no_gpu = said.number(without_gpu().partition(" and ")[0])
    older = said.number(triton_refuses((8, 9)).partition("; ")[0])
    interpreted = said.number(triton_refuses(None))
    rows = [
        ["`cuda`", "all of the above", "all of the above", f"no {no_gpu}"],
        ["`triton`", "all of the above", f"all but what becomes fp8: no {older}",
         f"all but what becomes fp8, verified and not timed; that: no {interpreted}"],
        ["`torch`", "all of the above", "all of the above", "all of the above"],
    ]  # fmt: skip
    head = ["impl", "GPU, compute capability 9.0 or more", "GPU below 9.0", "CPU"]
    has = [[f"`{impl}`", *(_has(impl, op, said) for op in compose.options("op"))] for impl in IMPLS]
    ops = _table(["impl", *(f"`{op}`" for op in compose.options("op"))], has)
    return "\n".join(["## Implementations and machines", "", ops, "", _table(head, rows), ""])


def _has(impl: str, op: str, said: Refusals) -> str:
    module, _, name = compose.choice("impl", impl).target.rpartition(".")
    made = getattr(importlib.import_module(module), name)
    return _mark("" if hasattr(made, op) else f"impl={impl} has no {op}", said)


def _mark(sentence: str, said: Refusals) -> str:
    return f"no {said.number(sentence)}" if sentence else "yes"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sentence(work: Callable[[], object]) -> str:
    try:
        work()
    except Unsupported as refused:
        return str(refused)
    return ""


_ABOUT = """\
# What is written, and what is refused

Made from the code by `python -m tests.helpers.support > docs/support.md`; a test fails when they differ.
Another test runs every combination of layout, types and scale of each op that writes a cache on a CPU and
compares each outcome with this page. [semantics.md](semantics.md) defines the written bytes.

A number refers to a sentence at the end: the reason in the `skipped` row of a refusal. Names and sizes in a
sentence are examples of those that were asked for.
"""

_SCALES = """\
`fp8` is vLLM's name for `fp8_e4m3`. Converted means `x / scale`, to nearest even, saturating; copied means
byte for byte. `per_tensor` is one scale for K and one for V, `per_head` one for each head of either; own
scales are made by the call and written to the cache."""


if __name__ == "__main__":
    sys.stdout.write(text())
