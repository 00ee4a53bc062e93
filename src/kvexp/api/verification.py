"""Verify any function that has the signature of one of the library's, for the tests of an engine."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch

from kvexp import op as ops
from kvexp.api.caches import load_layout
from kvexp.bench import environment
from kvexp.bench.contract import CLAUSES
from kvexp.bench.contract.clauses import Subject, pose_clauses
from kvexp.case import Case
from kvexp.errors import ConfigError, Unsupported
from kvexp.experiment import Choice, Scalar
from kvexp.impl import make
from kvexp.op import Call
from kvexp.op.arguments import resolve_format
from kvexp.op.cache_write import CacheWrite
from kvexp.op.quantize import SOURCES

WORDS = {dtype: word for word, dtype in SOURCES.items()}
SIZES = (1, 64, 300)
"""Numbers of tokens of the calls, besides small ones."""
BLOCK_SIZE = 16


def verify(
    function: Callable[..., object],
    *,
    op: str,
    layout: str = "NHD",
    dtype: torch.dtype = torch.bfloat16,
    kv_cache_dtype: str = "auto",
    device: str | torch.device = "cuda",
    skip: Collection[str] = (),
    op_options: Mapping[str, Scalar] = MappingProxyType({}),
) -> dict[str, str]:
    """Verify byte for byte that a function keeps the contract of an op, clause by clause.

    The function is called with caches of 8 heads x 128 (for latent rows 512 and 64, for an indexer's keys
    128) and blocks of 16 between guard blocks, with 1, 7, 64 and 300 tokens: with padding, slots past the
    end, strided or unaligned rows, keys, values and slots that changed in place, and so on. The clauses are
    those of docs/semantics.md.

        def test_my_kernel_keeps_the_contract():
            kvexp.verify(my_reshape_and_cache_flash, op="reshape_and_cache_flash", layout="HND")

    Args:
        function: Takes the arguments of the library's function of that op, by position.
        op: An op that writes a cache, such as `reshape_and_cache_flash` or `concat_and_cache_mla`.
        layout: The caches', one that the op writes.
        dtype: Type of keys and values.
        kv_cache_dtype: A format that the op has, such as `auto` or `fp8` (which is `fp8_e4m3`).
        device: The tensors' device.
        skip: Clauses to leave out.
        op_options: The op's own options, such as `scale_fmt`; by default those of the class.

    Returns:
        For each clause `holds`, or `refused: ` and the reason, where the function raised ValueError or
        NotImplementedError.

    Raises:
        AssertionError: A clause is broken, and the message names each with its first wrong token, head, slot
            and bytes; or the function refuses a plain call.
        ValueError: An op, layout, dtype, format, device or clause is unknown, or they do not fit together.
    """
    _check("op", op, ops.list_functions())
    loaded = _make_op(op, op_options)
    _check("dtype", dtype, WORDS)
    resolved = resolve_format(kv_cache_dtype, loaded.formats)
    for clause in skip:
        _check("skip", clause, CLAUSES)
    asked = Subject(
        impl=_Function(function, op),
        op=loaded,
        layout=load_layout(layout),
        source=dtype,
        case=_case(loaded, layout, WORDS[dtype], resolved, _resolve_device(device)),
    )
    try:
        asked.op.check(asked.case, asked.layout, dtype.itemsize)
    except Unsupported as refusal:
        raise ValueError(str(refusal)) from refusal
    contract = pose_clauses(asked, SIZES, skip=skip)
    findings = (*contract.wrong, *contract.findings)
    broken = [finding for finding in findings if finding.outcome in ("broken", "failed")]
    name = getattr(function, "__name__", "the function")
    if broken:
        raise AssertionError("\n".join(f"{name} {finding.sentence}" for finding in broken))
    for refused in contract.wrong:
        raise AssertionError(f"{name} refuses a plain call of {refused.num_tokens} tokens: {refused.words}")
    return {
        finding.clause: "holds" if finding.outcome == "holds" else f"refused: {finding.words}"
        for finding in contract.findings
    }


def _make_op(name: str, options: Mapping[str, Scalar]) -> Any:
    made = type(ops.load(name))
    try:
        return make(Choice(name, f"{made.__module__}.{made.__qualname__}", options))
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _check(name: str, value: object, valid: Collection[object]) -> None:
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(str, valid))}, not {value!r}")


def _resolve_device(device: str | torch.device) -> str:
    """Return `cpu` or `cuda:N`, the current GPU where no number is given.

    Raises:
        ValueError: There is no such device.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {device!r}") from error
    _check("device", found.type, ("cpu", "cuda"))
    if found.type == "cpu":
        return "cpu"
    if found.index is None and torch.cuda.is_available():
        found = torch.device("cuda", torch.cuda.current_device())
    try:
        return environment.resolve_device(str(found))
    except Unsupported as refusal:
        raise ValueError(str(refusal)) from refusal


class _Function:
    """Wraps the function as an implementation of one op."""

    name = "function"
    untimed = ""

    def __init__(self, function: Callable[..., object], op: str) -> None:
        self._function = function
        setattr(self, op, self._bind)

    def _bind(self, *arguments: Any) -> Call:
        def call() -> None:
            try:
                self._function(*arguments)
            except ValueError as refusal:
                raise Unsupported(str(refusal)) from refusal

        return call


def _case(op: CacheWrite, layout: str, dtype: str, kv_cache_dtype: str, device: str) -> Case:
    sizes: Any = op.sample_sizes
    return Case(
        op=op.name,
        impl=_Function.name,
        impl_options="{}",
        layout=layout,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        scale="per_tensor",
        mode="no_graph",
        timer="none",
        timer_options="{}",
        device=device,
        num_tokens=max(SIZES),
        **sizes,
        block_size=BLOCK_SIZE,
        num_blocks=1 + max(SIZES) // BLOCK_SIZE,
        num_query_heads=op.sample_sizes["num_heads"],
    )
