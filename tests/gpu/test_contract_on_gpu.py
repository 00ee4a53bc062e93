import itertools
from dataclasses import replace

import pytest
import torch

from kvexp.impl import make
from kvexp.op.quantize import FORMATS, quantize
from tests.helpers import compose, oracle
from tests.helpers.contract import IDS, PAIRS, Contract
from tests.helpers.oracle import PAGED

DEVICE = "cuda:0"
HEADS = (1, 2, 3, 5, 8, 13, 32, 40, 64, 128)
HEAD_SIZES = (46, 64, 80, 96, 112, 120, 128, 192, 256)
BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)
TOKENS = (1, 2, 7, 31, 32, 33, 42, 512)


class TestContractOnGpu(Contract):
    @pytest.mark.parametrize(("op", "layout"), PAIRS, ids=IDS)
    @pytest.mark.parametrize("slots", ["shuffled", "contiguous"])
    @pytest.mark.parametrize("num_tokens", [512, 8192])
    @pytest.mark.parametrize("kv_cache_dtype", compose.formats())
    def test_many_tokens_hold_the_law(self, impl, device, op, layout, num_tokens, slots, kv_cache_dtype):
        chosen = oracle.shuffled(num_tokens, 1024 * 16) if slots == "shuffled" else range(5, 5 + num_tokens)
        posed = oracle.problem(
            device, list(chosen), op=op, layout=layout, num_heads=8, head_size=128, num_blocks=1024,
            kv_cache_dtype=kv_cache_dtype,
        )  # fmt: skip
        oracle.assert_writes(impl, posed)

    @pytest.mark.parametrize("fp8", FORMATS)
    @pytest.mark.parametrize("dtype", oracle.WIDE)
    @pytest.mark.parametrize("op", compose.cache_writes())
    def test_special_values_have_the_contract_s_codes(self, impl, device, op, dtype, fp8):
        source = oracle.DTYPES[dtype]
        special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 448.0, -464.0, 1e4]
        special += [2.0**-9, 2.0**-10, 3 * 2.0**-10, -(2.0**-24), 17.0, 19.0, 2.0**-6, -7.875]
        special += [57344.0, 61440.0, 65504.0, 2.0**-16, 2.0**-17, 3 * 2.0**-17, 9.0, 11.0]
        special += [1.0] * 8
        rows = torch.tensor(special, device=device).to(source).repeat(4).view(1, 2, 64).contiguous()
        rows = torch.cat([rows, -rows])
        posed = oracle.problem(device, [7, 99], op=op, dtype=dtype, kv_cache_dtype=fp8, key=rows, value=rows)
        posed.k_scale.fill_(1.0)
        oracle.assert_writes(impl, posed)

    @pytest.mark.parametrize("op", compose.cache_writes())
    def test_a_replay_follows_the_tensors_contents(self, impl, device, op):
        posed = oracle.problem(device, [5, 6, 7, 8], op=op)
        call = posed.bind(oracle.implementation(impl, device))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin()
            call()
            graph.capture_end()
            posed.slot_mapping.copy_(torch.tensor([50, -1, 70, -1]))
            posed.key.neg_()
            expected = posed.expected()
            graph.replay()
        stream.synchronize()
        assert torch.equal(posed.storage, expected)


@pytest.mark.xdist_group("large")  # each takes up to 52 GB: a cache, its copy, and a bool a byte
@pytest.mark.parametrize("impl", compose.implementations())
@pytest.mark.parametrize(("op", "layout"), PAIRS, ids=IDS)
@pytest.mark.parametrize("kv_cache_dtype", compose.formats())
def test_byte_offsets_pass_two_to_the_32(impl, op, layout, kv_cache_dtype):
    """A plane that reaches past 2^32 items; its far slots are read back, near ones must stay."""
    # Items from one slot of K to the next: V's are among them but in head-major caches.
    slot_items = 8 * 128 * (1 if op == PAGED else 2)
    num_blocks = 2**32 // (16 * slot_items) + 512
    last = num_blocks * 16 - 1
    slots = [last, 0, 2**31 // slot_items + 1, last - 17]
    posed = oracle.problem(
        DEVICE, slots, op=op, layout=layout, num_heads=8, head_size=128, num_blocks=num_blocks,
        kv_cache_dtype=kv_cache_dtype,
    )  # fmt: skip
    for cache in (posed.key_cache, posed.value_cache):
        reach = sum((size - 1) * stride for size, stride in zip(cache.shape, cache.stride(), strict=True))
        assert reach > 2**32 - 2**20
    oracle.assert_writes(impl, posed)


@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize(("op", "layout"), PAIRS, ids=IDS)
def test_cuda_writes_every_number_and_size_of_heads(op, layout, head_size):
    """Block sizes and numbers of tokens take turns."""
    if op == PAGED and head_size % 8:
        pytest.skip("the op refuses it")
    turns = zip(HEADS, itertools.cycle(BLOCK_SIZES), itertools.cycle(TOKENS), strict=False)
    for num_heads, block_size, num_tokens in turns:
        num_blocks = -(-num_tokens // block_size) + 2
        posed = oracle.problem(
            DEVICE, oracle.shuffled(num_tokens, num_blocks * block_size), op=op, layout=layout,
            num_heads=num_heads, head_size=head_size, block_size=block_size, num_blocks=num_blocks,
        )  # fmt: skip
        oracle.assert_writes("cuda", posed)


@pytest.mark.parametrize("fp8", FORMATS)
@pytest.mark.parametrize("dtype", ["half", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 0.37, 3e-5, 7e4, 1e-38])
@pytest.mark.parametrize("impl", compose.implementations())
def test_every_sixteen_bit_value_is_quantised_as_the_oracle_does(impl, dtype, scale, fp8):
    every = torch.arange(-(2**15), 2**15, device=DEVICE, dtype=torch.int32).to(torch.int16)
    rows = every.view(oracle.DTYPES[dtype]).view(64, 8, 128)
    posed = oracle.problem(
        DEVICE, list(range(64)), dtype=dtype, kv_cache_dtype=fp8, num_heads=8, head_size=128, key=rows,
        value=rows,
    )  # fmt: skip
    posed.k_scale.fill_(scale)
    oracle.assert_writes(impl, posed)


@pytest.mark.parametrize("fp8", FORMATS)
@pytest.mark.parametrize("op", compose.cache_writes())
def test_conversion_without_the_instruction_gives_the_same_codes(op, fp8):
    """What sm_80 runs, on this GPU."""
    bits = torch.randint(-(2**31), 2**31, (512, 8, 128), device=DEVICE)
    exponents = torch.randint(-20, 18, (512, 8, 128), device=DEVICE)
    near = torch.randn(512, 8, 128, device=DEVICE) * 2.0**exponents
    choice = replace(compose.choice("impl", "cuda"), options={"software_fp8": True})
    software = make(choice, device=DEVICE)
    for rows in (bits.to(torch.int32).view(torch.float32), near):
        posed = oracle.problem(
            DEVICE, list(range(512)), op=op, dtype="float", kv_cache_dtype=fp8, num_heads=8, head_size=128,
            num_blocks=32, key=rows, value=rows,
        )  # fmt: skip
        posed.k_scale.fill_(1.0)
        expected = posed.expected()
        posed.bind(software)()
        assert torch.equal(posed.storage, expected)
        assert quantize(rows, fp8, posed.k_scale).unique().numel() > 200


@pytest.mark.parametrize("group_tokens", [1, 2, 8, 32])
@pytest.mark.parametrize("fp8", ["auto", "fp8_e4m3"])
def test_groups_of_any_size_hold_the_law(group_tokens, fp8):
    choice = replace(compose.choice("impl", "cuda"), options={"group_tokens": group_tokens})
    impl = make(choice, device=DEVICE)
    for num_tokens in (1, 5, 33, 512):
        posed = oracle.problem(
            DEVICE, oracle.shuffled(num_tokens, 1024 * 16), op=PAGED, num_heads=5, num_blocks=1024,
            kv_cache_dtype=fp8,
        )  # fmt: skip
        expected = posed.expected()
        posed.bind(impl)()
        assert torch.equal(posed.storage, expected)
