"""reshape_and_cache_flash_per_token_head on a GPU: many tokens, and the library."""

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

import kvexp
from kvexp.impl import make
from kvexp.op import PER_TOKEN_HEAD
from tests.helpers import compose, oracle, own_scales
from tests.helpers.own_scales import OP

DEVICE = "cuda:0"
IMPLS = compose.implementations()


def call(*arguments, **options):
    getattr(kvexp, OP)(*arguments, **options)


class TestContract(own_scales.OwnScalesContract):
    @pytest.mark.parametrize(("dtype", "kv_cache_dtype"), own_scales.KINDS)
    def test_many_tokens_hold_the_law(self, impl, device, dtype, kv_cache_dtype):
        for sizes, slots in (
            ((128, 128), oracle.shuffled(2048, 256 * 16)),
            ((192, 128), range(5, 517)),
            ((1040, 72), range(5, 69)),
        ):
            posed = own_scales.problem(
                device, slots, dtype=dtype, kv_cache_dtype=kv_cache_dtype, blocks=(256, 16), sizes=sizes,
                num_heads=8,
            )  # fmt: skip
            own_scales.assert_writes(impl, posed)


def test_the_implementations_write_the_same_bytes_of_any_bits():
    generator = torch.Generator(DEVICE).manual_seed(0)
    for (dtype, kind), num_heads in zip(own_scales.KINDS, (1, 3, 8, 8, 3, 1), strict=True):
        source = oracle.DTYPES[dtype]
        shape = (4096, num_heads, 128 * source.itemsize)
        bits = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE, generator=generator)
        # Exponents of few values in each head, so that many quotients are not 0.
        bits[..., source.itemsize - 1 :: source.itemsize] &= 0x87
        bits[..., source.itemsize - 1 :: source.itemsize] |= 0x38
        rows = bits.view(source)
        written = []
        for name in IMPLS:
            posed = own_scales.problem(
                DEVICE, oracle.shuffled(4096, 256 * 16), dtype=dtype, kv_cache_dtype=kind, blocks=(256, 16),
                num_heads=num_heads, key=rows, value=rows.flip(0),
            )  # fmt: skip
            own_scales.bind(name, posed)()
            written.append(posed.storage)
        assert all(torch.equal(written[0], other) for other in written[1:]), (dtype, kind)


@pytest.mark.parametrize("kv_cache_dtype", PER_TOKEN_HEAD)
def test_cuda_writes_heads_without_the_instruction_and_with_several_cells_a_lane(kv_cache_dtype):
    key = own_scales.special_heads("bfloat16", DEVICE)
    slots = oracle.shuffled(len(key), 128)
    for options in (
        {"software_fp8": True},
        {"unroll": 4},
        {"unroll": 2, "cta_threads": 32},
        {"chunk_items": 4},
    ):
        posed = own_scales.problem(DEVICE, slots, kv_cache_dtype=kv_cache_dtype, key=key, value=key.flip(0))
        expected = posed.expected()
        choice = replace(compose.choice("impl", "cuda"), options=options)
        getattr(make(choice, device=DEVICE), OP)(*posed.arguments)()
        assert torch.equal(posed.storage, expected)


@pytest.mark.parametrize("kv_cache_dtype", PER_TOKEN_HEAD)
@pytest.mark.parametrize("name", IMPLS)
class TestLibrary:
    def test_a_captured_call_reads_what_is_there_at_the_replay(self, name, kv_cache_dtype):
        posed = own_scales.problem(DEVICE, [5, 1, 9], kv_cache_dtype=kv_cache_dtype)
        before = posed.storage.clone()
        call(*posed.arguments, impl=name)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call(*posed.arguments, impl=name)
        posed.storage.copy_(before)
        posed.key.mul_(-2)
        posed.slot_mapping.copy_(torch.tensor([127, -1, 64]))
        expected = posed.expected()
        graph.replay()
        assert torch.equal(posed.storage, expected)

    def test_later_calls_of_other_addresses_are_right(self, name, kv_cache_dtype):
        for begins in ((0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 4, 8), (0, 0, 0)):
            for _ in range(2):
                posed = own_scales.problem(DEVICE, [7, 1, 9], kv_cache_dtype=kv_cache_dtype, begins=begins)
                own_scales.assert_writes(f"library/{name}", posed)

    @pytest.mark.long
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_it_compiles_without_a_break(self, name, kv_cache_dtype, backend):
        def step(key, *others):
            call(key * 2, *others, impl=name)
            return key.sum()

        torch._dynamo.reset()
        posed = own_scales.problem(DEVICE, [5, 1, 9], kv_cache_dtype=kv_cache_dtype)
        expected = replace(posed, key=posed.key * 2).expected()
        torch.compile(step, fullgraph=True, backend=backend)(*posed.arguments)
        assert torch.equal(posed.storage, expected)

    def test_the_registered_op_passes_torch_s_own_check(self, name, kv_cache_dtype):
        posed = own_scales.problem(DEVICE, [5, 1, 9], kv_cache_dtype=kv_cache_dtype)
        outcome = opcheck(getattr(torch.ops.kvexp, OP).default, (*posed.arguments, name, False))
        assert set(outcome.values()) == {"SUCCESS"}
