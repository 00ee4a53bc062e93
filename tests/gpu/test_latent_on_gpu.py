"""concat_and_cache_mla on a GPU: many tokens, and the library."""

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

import kvexp
from kvexp.impl import make
from kvexp.op import Op
from tests.helpers import compose, latent, oracle
from tests.helpers.latent import DS_MLA, MLA, SCALE

DEVICE = "cuda:0"
IMPLS = compose.implementations()
FORMATS = (*Op.formats, DS_MLA)


def scaled(posed):
    """The call with a scale where it reads one."""
    return replace(posed, scale=posed.scale if posed.converts and posed.kv_cache_dtype != DS_MLA else None)


class TestContract(latent.LatentContract):
    @pytest.mark.parametrize(("dtype", "kv_cache_dtype"), latent.KINDS)
    def test_many_tokens_hold_the_law(self, impl, device, dtype, kv_cache_dtype):
        for slots in (list(range(5, 517)), oracle.shuffled(8192, 256 * 64)):
            posed = latent.problem(
                device, slots, dtype=dtype, kv_cache_dtype=kv_cache_dtype, blocks=(256, 64)
            )
            latent.assert_writes(impl, posed)


@pytest.mark.parametrize("dtype", ["half", "bfloat16"])
def test_cuda_writes_tiles_without_the_instruction_and_with_several_rows_a_warp(dtype):
    kv_c = latent.special_tiles(dtype, DEVICE)
    slots = oracle.shuffled(len(kv_c), 128)
    for options in ({"software_fp8": True}, {"unroll": 4}, {"unroll": 2, "cta_threads": 32}):
        posed = latent.problem(DEVICE, slots, dtype=dtype, kv_cache_dtype=DS_MLA, kv_c=kv_c)
        expected = posed.expected()
        choice = replace(compose.choice("impl", "cuda"), options=options)
        getattr(make(choice, device=DEVICE), MLA)(*posed.arguments)()
        assert torch.equal(posed.storage, expected)


@pytest.mark.parametrize("kv_cache_dtype", FORMATS)
@pytest.mark.parametrize("name", IMPLS)
class TestLibrary:
    def test_a_captured_call_reads_what_is_there_at_the_replay(self, name, kv_cache_dtype):
        posed = scaled(latent.problem(DEVICE, [5, 1, 9], kv_cache_dtype=kv_cache_dtype))
        before = posed.storage.clone()
        kvexp.concat_and_cache_mla(*posed.arguments, impl=name)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kvexp.concat_and_cache_mla(*posed.arguments, impl=name)
        posed.storage.copy_(before)
        posed.kv_c.mul_(-2)
        posed.slot_mapping.copy_(torch.tensor([127, -1, 64]))
        expected = posed.expected()
        graph.replay()
        assert torch.equal(posed.storage, expected)

    def test_later_calls_of_other_addresses_are_right(self, name, kv_cache_dtype):
        for begins in ((0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 4, 8), (0, 0, 0)):
            for _ in range(2):
                posed = latent.problem(DEVICE, [7, 1, 9], kv_cache_dtype=kv_cache_dtype, begins=begins)
                latent.assert_writes(f"library/{name}", posed)

    @pytest.mark.long
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_it_compiles_without_a_break(self, name, kv_cache_dtype, backend):
        def step(kv_c, *others):
            kvexp.concat_and_cache_mla(kv_c * 2, *others, impl=name)
            return kv_c.sum()

        torch._dynamo.reset()
        posed = scaled(latent.problem(DEVICE, [5, 1, 9], kv_cache_dtype=kv_cache_dtype))
        expected = replace(posed, kv_c=posed.kv_c * 2).expected()
        torch.compile(step, fullgraph=True, backend=backend)(*posed.arguments)
        assert torch.equal(posed.storage, expected)

    def test_the_registered_op_passes_torch_s_own_check(self, name, kv_cache_dtype):
        posed = scaled(latent.problem(DEVICE, [5, 1, 9], kv_cache_dtype=kv_cache_dtype))
        outcome = opcheck(torch.ops.kvexp.concat_and_cache_mla.default, (*posed.arguments, name, False))
        assert set(outcome.values()) == {"SUCCESS"}


def test_a_scale_that_is_not_read_may_be_there():
    for name in IMPLS:
        for kv_cache_dtype in ("auto", DS_MLA):
            posed = latent.problem(DEVICE, [5, 1, 9], kv_cache_dtype=kv_cache_dtype)
            expected = posed.expected()
            assert float(posed.scale) == pytest.approx(SCALE)
            for _ in range(2):
                kvexp.concat_and_cache_mla(*posed.arguments, impl=name)
            assert torch.equal(posed.storage, expected)
