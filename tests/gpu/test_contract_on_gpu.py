import pytest
import torch

from kvexp import jit
from kvexp.impl import cuda
from kvexp.quantize import quantize
from tests import composed, law
from tests.contract import Contract

DEVICE = "cuda:0"


@pytest.fixture(params=composed.options("impl"))
def impl(request):
    return request.param


@pytest.fixture
def device():
    return DEVICE


class TestContractOnGpu(Contract):
    @pytest.mark.parametrize("layout", composed.options("layout"))
    @pytest.mark.parametrize("num_tokens", [512, 8192])
    @pytest.mark.parametrize("kv_cache_dtype", composed.options("kv_cache_dtype"))
    def test_many_tokens_hold_the_law(self, impl, device, layout, num_tokens, kv_cache_dtype):
        posed = law.problem(
            device,
            law.shuffled(num_tokens, 1024 * 16),
            layout=layout,
            num_heads=8,
            head_size=128,
            num_blocks=1024,
            kv_cache_dtype=kv_cache_dtype,
        )
        law.assert_writes(impl, posed)

    @pytest.mark.parametrize("layout", composed.options("layout"))
    @pytest.mark.parametrize("kv_cache_dtype", composed.options("kv_cache_dtype"))
    def test_byte_offsets_pass_two_to_the_32(self, impl, device, layout, kv_cache_dtype):
        """A cache of more than 4 GiB of items; its far slots are read back, near ones must stay."""
        posed = law.problem(device, [0], layout=layout, kv_cache_dtype=kv_cache_dtype)
        del posed
        num_blocks = 2**32 // (2 * 16 * 8 * 128) + 512
        last = num_blocks * 16 - 1
        slots = [last, 0, 2**31 // (2 * 8 * 128) + 1, last - 17]
        posed = law.problem(
            device,
            slots,
            layout=layout,
            num_heads=8,
            head_size=128,
            num_blocks=num_blocks,
            kv_cache_dtype=kv_cache_dtype,
        )
        assert posed.storage.numel() > 2**32
        law.assert_writes(impl, posed)

    @pytest.mark.parametrize("dtype", composed.options("dtype"))
    def test_special_values_have_the_contract_s_codes(self, impl, device, dtype):
        source = law.DTYPES[dtype]
        special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 448.0, -464.0, 1e4]
        special += [2.0**-9, 2.0**-10, 3 * 2.0**-10, -(2.0**-24), 17.0, 19.0, 2.0**-6, -7.875]
        rows = torch.tensor(special, device=device).to(source).repeat(8).view(1, 2, 64).contiguous()
        rows = torch.cat([rows, -rows])
        posed = law.problem(device, [7, 99], dtype=dtype, kv_cache_dtype="fp8", key=rows, value=rows)
        posed.k_scale.fill_(1.0)
        law.assert_writes(impl, posed)

    def test_a_replay_follows_the_slot_mapping_s_contents(self, impl, device):
        posed = law.problem(device, [5, 6, 7, 8])
        call = posed.bind(law.implementation(impl, device))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin()
            call()
            graph.capture_end()
            posed.slot_mapping.copy_(torch.tensor([50, -1, 70, -1]))
            expected = posed.expected()
            graph.replay()
        stream.synchronize()
        assert torch.equal(posed.storage, expected)


@pytest.mark.parametrize("dtype", ["half", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 0.37, 3e-5, 7e4, 1e-38])
def test_every_sixteen_bit_value_is_quantised_as_the_oracle_does(dtype, scale):
    every = torch.arange(-(2**15), 2**15, device=DEVICE, dtype=torch.int32).to(torch.int16)
    rows = every.view(law.DTYPES[dtype]).view(64, 8, 128)
    posed = law.problem(
        DEVICE, list(range(64)), dtype=dtype, kv_cache_dtype="fp8", num_heads=8, head_size=128, key=rows,
        value=rows,
    )  # fmt: skip
    posed.k_scale.fill_(scale)
    law.assert_writes("cuda", posed)


def test_conversion_without_the_instruction_gives_the_same_codes():
    """What sm_80 runs, on this GPU: SOFTWARE_FP8 takes the place of cvt.rn.satfinite.e4m3x2.f32."""
    bits = torch.randint(-(2**31), 2**31, (512, 8, 128), device=DEVICE)
    near = torch.randn(512, 8, 128, device=DEVICE) * 2.0 ** torch.randint(
        -14, 10, (512, 8, 128), device=DEVICE
    )
    for rows in (bits.to(torch.int32).view(torch.float32), near):
        posed = law.problem(
            DEVICE, list(range(512)), dtype="float", kv_cache_dtype="fp8", num_heads=8, head_size=128,
            num_blocks=32, key=rows, value=rows,
        )  # fmt: skip
        posed.k_scale.fill_(1.0)
        impl = law.implementation("cuda", DEVICE)
        spec = impl.flash(rows, rows, posed.key_cache, posed.value_cache, 512, "fp8_e4m3")
        macros = (*spec.macros, ("SOFTWARE_FP8", 1))
        kernel = jit.kernel(cuda.FLASH, "reshape_and_cache_flash", macros, impl.arch)
        tensors = (
            rows, rows, posed.key_cache, posed.value_cache, posed.slot_mapping, posed.k_scale, posed.v_scale,
        )  # fmt: skip
        impl.launch(kernel, tensors, 512 * spec.token_chunks, 512)()
        found = posed.key_cache[torch.arange(512) // 16, torch.arange(512) % 16]
        assert torch.equal(found, quantize(rows, "fp8_e4m3", posed.k_scale))
