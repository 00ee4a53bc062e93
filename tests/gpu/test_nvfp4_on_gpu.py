"""reshape_and_cache_flash_nvfp4 on a GPU: many tokens, and the library."""

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

import kvexp
from kvexp.impl import make
from tests.helpers import compose, nvfp4, oracle
from tests.helpers.nvfp4 import DTYPES, LAYOUTS, NVFP4_OP

DEVICE = "cuda:0"
IMPLS = compose.implementations()


def call(*arguments, **options):
    getattr(kvexp, NVFP4_OP)(*arguments, **options)


class TestContract(nvfp4.Nvfp4Contract):
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_many_tokens_hold_the_law(self, impl, device, dtype, layout):
        for sizes, slots in (((8, 128), oracle.shuffled(2048, 256 * 16)), ((3, 80), range(5, 517))):
            posed = nvfp4.problem(device, slots, dtype=dtype, layout=layout, sizes=sizes, blocks=(256, 16))
            nvfp4.assert_writes(impl, posed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_implementations_write_the_same_bytes_of_any_bits(dtype):
    """Of all bits of an item, with neighbours of any size, and with scales of many significands."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    for turn in range(24):
        bits = torch.randperm(1 << 16, generator=generator, device=DEVICE)
        if turn % 2:
            bits = bits.sort().values  # neighbours are alike, so that most levels occur
        rows = (bits - (1 << 15)).to(torch.int16).view(oracle.DTYPES[dtype]).view(512, 1, 128)
        scale = float(torch.rand((), generator=generator, device=DEVICE)) * 4.0 ** (turn - 10)
        written = []
        for name in IMPLS:
            posed = nvfp4.problem(
                DEVICE, oracle.shuffled(512, 512), dtype=dtype, sizes=(1, 128), blocks=(32, 16), key=rows,
                value=rows.flip(0), scales=(scale, scale * 1.37),
            )  # fmt: skip
            nvfp4.bind(name, posed)()
            written.append(posed.storage)
        assert all(torch.equal(written[0], other) for other in written[1:]), scale


@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_writes_tiles_without_the_instruction_and_several_a_thread(dtype):
    key = nvfp4.special_rows(dtype, DEVICE, 0.37)
    slots = oracle.shuffled(len(key), 512)
    for options in ({"software_fp8": True}, {"unroll": 4}, {"unroll": 2, "cta_threads": 32}):
        posed = nvfp4.problem(
            DEVICE, slots, dtype=dtype, sizes=(1, 128), blocks=(32, 16), key=key, value=key.flip(0)
        )
        expected = posed.expected()
        choice = replace(compose.choice("impl", "cuda"), options=options)
        getattr(make(choice, device=DEVICE), NVFP4_OP)(*posed.arguments)()
        assert torch.equal(posed.storage, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", IMPLS)
class TestLibrary:
    def test_a_captured_call_reads_what_is_there_at_the_replay(self, name, layout):
        posed = nvfp4.problem(DEVICE, [5, 1, 9], layout=layout)
        before = posed.storage.clone()
        call(*posed.arguments, impl=name)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call(*posed.arguments, impl=name)
        posed.storage.copy_(before)
        posed.key.mul_(-2)
        posed.v_scale.mul_(3)
        posed.slot_mapping.copy_(torch.tensor([127, -1, 64]))
        expected = posed.expected()
        graph.replay()
        assert torch.equal(posed.storage, expected)

    def test_later_calls_of_other_addresses_are_right(self, name, layout):
        for begins in ((0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 4, 8), (0, 0, 0)):
            for _ in range(2):
                posed = nvfp4.problem(DEVICE, [7, 1, 9], layout=layout, begins=begins)
                nvfp4.assert_writes(f"library/{name}", posed)

    def test_the_layout_is_part_of_what_a_later_call_is_recognised_by(self, name, layout):
        posed = nvfp4.problem(DEVICE, [7, 1, 9], layout=layout)
        for other in (*LAYOUTS, *LAYOUTS):
            nvfp4.assert_writes(f"library/{name}", replace(posed, layout=other))

    def test_scales_that_are_one_tensor_are_right(self, name, layout):
        for _ in range(2):
            posed = nvfp4.problem(DEVICE, [7, 1, 9], layout=layout)
            nvfp4.assert_writes(f"library/{name}", replace(posed, v_scale=posed.k_scale))

    @pytest.mark.long
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_it_compiles_without_a_break(self, name, layout, backend):
        def step(key, *others):
            call(key * 2, *others, impl=name)
            return key.sum()

        torch._dynamo.reset()
        posed = nvfp4.problem(DEVICE, [5, 1, 9], layout=layout)
        expected = replace(posed, key=posed.key * 2).expected()
        torch.compile(step, fullgraph=True, backend=backend)(*posed.arguments)
        assert torch.equal(posed.storage, expected)

    def test_the_registered_op_passes_torch_s_own_check(self, name, layout):
        posed = nvfp4.problem(DEVICE, [5, 1, 9], layout=layout)
        outcome = opcheck(getattr(torch.ops.kvexp, NVFP4_OP).default, (*posed.arguments, name, False))
        assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("scale", nvfp4.INVALID_SCALES)
def test_check_slots_names_a_scale_that_is_not_positive_and_finite(scale):
    posed = nvfp4.problem(DEVICE, [5, 1, 9], scales=(0.3, scale))
    for name in IMPLS:
        with pytest.raises(ValueError, match="v_scale must be positive and finite, not "):
            call(*posed.arguments, impl=name, check_slots=True)
