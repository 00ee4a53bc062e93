"""indexer_k_quant_and_cache on a GPU: many tokens, and the library."""

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

import kvexp
from kvexp.impl import make
from tests.helpers import compose, indexer, oracle
from tests.helpers.indexer import INDEXER, KINDS, SCALE_FORMATS

DEVICE = "cuda:0"
IMPLS = compose.implementations()


class TestContract(indexer.IndexerContract):
    @pytest.mark.parametrize(("dtype", "scale_fmt"), KINDS)
    def test_many_keys_of_any_bits_hold_the_law(self, impl, device, dtype, scale_fmt):
        generator = torch.Generator().manual_seed(1)
        bits = torch.randint(-(2**15), 2**15, (8192, 128), generator=generator, dtype=torch.int32)
        # Most keys of random bits have an infinity or NaN: half of them are numbers of one magnitude.
        numbers = torch.randn(8192, 128, generator=generator) * torch.linspace(-30, 15, 8192).exp2()[:, None]
        source = oracle.DTYPES[dtype]
        chosen = (torch.arange(8192) % 2 == 0)[:, None]
        k = torch.where(chosen, bits.to(torch.int16), numbers.to(source).view(torch.int16)).view(source)
        for slots in (list(range(5, 517)), oracle.shuffled(8192, 256 * 64)):
            posed = indexer.problem(
                device, slots, dtype=dtype, scale_fmt=scale_fmt, blocks=(256, 64), k=k.to(device)
            )
            indexer.assert_writes(impl, posed)


@pytest.mark.parametrize(("dtype", "scale_fmt"), KINDS)
@pytest.mark.parametrize("options", [{"software_fp8": True}, {"unroll": 4}, {"unroll": 2, "cta_threads": 32}])
def test_cuda_writes_keys_without_the_instruction_and_several_a_lane(dtype, scale_fmt, options):
    k = indexer.special_keys(dtype, DEVICE)
    slots = oracle.shuffled(len(k), 8 * 64)
    posed = indexer.problem(DEVICE, slots, dtype=dtype, scale_fmt=scale_fmt, blocks=(8, 64), k=k)
    expected = posed.expected()
    choice = replace(compose.choice("impl", "cuda"), options=options)
    getattr(make(choice, device=DEVICE), INDEXER)(*posed.arguments)()
    assert torch.equal(posed.storage, expected)


@pytest.mark.parametrize("scale_fmt", SCALE_FORMATS)
@pytest.mark.parametrize("name", IMPLS)
class TestLibrary:
    def test_a_captured_call_reads_what_is_there_at_the_replay(self, name, scale_fmt):
        posed = indexer.problem(DEVICE, [5, 1, 9], scale_fmt=scale_fmt)
        before = posed.storage.clone()
        kvexp.indexer_k_quant_and_cache(*posed.arguments, impl=name)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kvexp.indexer_k_quant_and_cache(*posed.arguments, impl=name)
        posed.storage.copy_(before)
        posed.k.mul_(-3)
        posed.slot_mapping.copy_(torch.tensor([127, -1, 64]))
        expected = posed.expected()
        graph.replay()
        assert torch.equal(posed.storage, expected)

    def test_later_calls_of_other_addresses_are_right(self, name, scale_fmt):
        for begins in ((0, 0), (1, 0), (0, 1), (4, 8), (0, 0)):
            for _ in range(2):
                posed = indexer.problem(DEVICE, [7, 1, 9], scale_fmt=scale_fmt, begins=begins)
                indexer.assert_writes(f"library/{name}", posed)

    def test_a_later_call_with_the_other_scale_has_that(self, name, scale_fmt):
        for word in (scale_fmt, *SCALE_FORMATS, None, scale_fmt):
            indexer.assert_writes(f"library/{name}", indexer.problem(DEVICE, [7, 1, 9], scale_fmt=word))

    @pytest.mark.long
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_it_compiles_without_a_break(self, name, scale_fmt, backend):
        def step(k, *others):
            kvexp.indexer_k_quant_and_cache(k * 2, *others, impl=name)
            return k.sum()

        torch._dynamo.reset()
        posed = indexer.problem(DEVICE, [5, 1, 9], scale_fmt=scale_fmt)
        expected = replace(posed, k=posed.k * 2).expected()
        torch.compile(step, fullgraph=True, backend=backend)(*posed.arguments)
        assert torch.equal(posed.storage, expected)

    def test_the_registered_op_passes_torch_s_own_check(self, name, scale_fmt):
        posed = indexer.problem(DEVICE, [5, 1, 9], scale_fmt=scale_fmt)
        outcome = opcheck(torch.ops.kvexp.indexer_k_quant_and_cache.default, (*posed.arguments, name, False))
        assert set(outcome.values()) == {"SUCCESS"}
