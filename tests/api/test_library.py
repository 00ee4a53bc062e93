"""The library's functions: the contract, and torch around them."""

from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

import kvexp
from tests.helpers import oracle
from tests.helpers.contract import Contract
from tests.helpers.library_calls import OPS, SLOTS, assert_refused, called
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

FUNCTIONS = [*zip(OPS, OPS, strict=True), (FLASH, PAGED)]
"""Pair each function of the library with the op that its call performs; the flash function has two."""


class TestContract(Contract):
    @pytest.fixture
    def impl(self):
        return "library/torch"

    @pytest.fixture
    def device(self):
        return "cpu"


class TestTorch:
    @pytest.mark.parametrize(("function", "op"), FUNCTIONS)
    def test_checks_the_registered_op(self, function, op):
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8", scale="per_head")
        registered = getattr(torch.ops.kvexp, function).default
        outcome = opcheck(registered, (*posed.arguments, "torch", False))
        assert set(outcome.values()) == {"SUCCESS"}

    @pytest.mark.parametrize(("function", "op"), FUNCTIONS)
    def test_compiles_a_call_without_a_break(self, function, op):
        torch._dynamo.reset()

        def step(key, *others):
            getattr(kvexp, function)(key * 2, *others, impl="torch")
            return key.sum()

        posed = oracle.problem("cpu", SLOTS, op=op)
        expected = replace(posed, key=posed.key * 2).expected()
        found = torch.compile(step, fullgraph=True, backend="aot_eager")(*posed.arguments)
        assert torch.equal(posed.storage, expected)
        assert torch.equal(found, posed.key.sum())

    def test_compiles_calls_of_any_number_of_tokens(self):
        torch._dynamo.reset()

        def step(key, *others):
            kvexp.reshape_and_cache_flash_diffkv(key * 2, *others, impl="torch")

        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
        for slots in ([5, 1, 9], [7], [3, 2, 8, 100, 64]):
            posed = oracle.problem("cpu", slots, op=DIFFKV)
            expected = replace(posed, key=posed.key * 2).expected()
            compiled(*posed.arguments)
            assert torch.equal(posed.storage, expected)

    @pytest.mark.parametrize(("function", "op"), FUNCTIONS)
    def test_traces_a_call_as_one_node_of_the_op_that_was_called(self, function, op):
        posed = oracle.problem("cpu", SLOTS, op=op)

        def step(*tensors):
            getattr(kvexp, function)(*tensors, "auto", impl="torch")

        before = posed.storage.clone()
        traced = make_fx(step, tracing_mode="fake")(*posed.arguments[:-3])
        assert torch.equal(posed.storage, before)
        targets = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
        assert targets == [f"kvexp.{function}.default"]

    def test_runs_it_in_inference_mode(self, posed):
        expected = posed.expected()
        with torch.inference_mode():
            called(posed)
        assert torch.equal(posed.storage, expected)

    def test_runs_it_on_a_cache_that_was_made_in_inference_mode(self, op):
        with torch.inference_mode():
            posed = oracle.problem("cpu", SLOTS, op=op)
        expected = posed.expected()
        called(posed)
        assert torch.equal(posed.storage, expected)

    def test_records_no_gradient_through_a_cache(self, posed):
        posed = replace(posed, key=posed.key.requires_grad_())
        called(posed)
        assert not any(cache.requires_grad for cache in posed.caches)


def test_a_second_call_of_other_sizes_is_validated_too(op):
    called(oracle.problem("cpu", SLOTS, op=op))
    oracle.assert_writes("library/torch", oracle.problem("cpu", SLOTS, op=op, num_heads=3))
    posed = oracle.problem("cpu", SLOTS, op=op)
    assert_refused(
        replace(posed, slot_mapping=posed.slot_mapping.float()),
        TypeError,
        "slot_mapping must be int64, not float32",
    )


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'kvexp' has no attribute 'reshape'"):
        kvexp.reshape  # noqa: B018  # looking it up is the test
