"""The division by a shared reciprocal is IEEE division: all source items of 16 bits, and many of 32."""

import math
import shutil
from pathlib import Path

import pytest
import torch

import kvexp
from kvexp.gpu import nvrtc
from kvexp.impl.cuda.items import Items
from kvexp.impl.cuda.launcher import SOURCES
from kvexp.op.quantize import quantize

THREADS = 128
LEAST, MOST = 2.0**-60, 2.0**60
"""Between these a scale is mild."""

SCALES = [
    *(
        0.0,
        -0.0,
        1e-45,
        1e-40,
        2.0**-126,
        2.0**-61,
        math.nextafter(LEAST, 0),
        LEAST,
        2.0**-20,
        1e-3,
        0.37,
        1.0,
    ),
    *(-1.0, 1.11, 3.0, 448.0, 1e4, 2.0**30, MOST, math.nextafter(MOST, math.inf), 2.0**126, 3e38, math.inf),
    *(-math.inf, math.nan),
]
"""Numbers around each edge; as float32 some come to the edge itself."""


SIGNIFICANDS = {"bfloat16": 1 << 7, "float16": 1 << 10, "float32": 1 << 10}


@pytest.fixture
def count(tmp_path):
    """The number of differences that a kernel of division.cu counts."""
    from cuda.core import LaunchConfig, Stream, launch

    for file in (Path(__file__).parent / "division.cu", SOURCES / "convert.cuh", SOURCES / "types.cuh"):
        shutil.copy(file, tmp_path)
    major, minor = torch.cuda.get_device_capability()

    def counted(name, threads, source, cache, *arguments):
        macros = (
            *Items(source, cache).macros,
            ("THREADS", THREADS),
            ("WIDE_INDEX", 0),
            ("SIGNIFICANDS", SIGNIFICANDS[source]),
        )
        wrong = torch.zeros(1, dtype=torch.int64, device="cuda")
        stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)
        kernel = nvrtc.load_kernel(tmp_path / "division.cu", name, macros, f"sm_{major}{minor}")
        launch(
            stream, LaunchConfig(grid=threads // THREADS, block=THREADS), kernel, wrong.data_ptr(), *arguments
        )
        return wrong.item()

    return counted


@pytest.mark.parametrize("source", SIGNIFICANDS)
def test_every_significand_by_every_scale_s(count, source):
    """Of float, eight thousand million pairs of the 2^46."""
    assert count("quotients", 2**23, source, "E4M3") == 0


@pytest.mark.parametrize("cache", ["E4M3", "E5M2"])
@pytest.mark.parametrize("source", SIGNIFICANDS)
def test_every_item_by_scales_of_every_kind(count, source, cache):
    generator = torch.Generator().manual_seed(5)
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=generator).to(torch.int32)
    scales = torch.cat([torch.tensor(SCALES), bits.view(torch.float32)]).cuda()
    assert count("codes", 2**16, source, cache, scales.data_ptr(), scales.numel()) == 0


@pytest.mark.parametrize("cache", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["cuda", "triton"])
@pytest.mark.parametrize("heads", [1, 4])
def test_an_op_gives_the_oracle_s_code_of_every_item_by_scales_of_every_kind(impl, source, cache, heads):
    """Each head holds all items and has a scale of its own; one head has the scale of the tensor."""
    items = torch.arange(2**16, dtype=torch.int32, device="cuda").to(torch.int16).view(source)
    rows = items.view(-1, 1, 128).expand(-1, heads, 128).contiguous()
    slots = torch.arange(len(rows), device="cuda")
    caches = [torch.empty(len(rows) // 16, 16, heads, 128, dtype=torch.uint8, device="cuda") for _ in "kv"]
    generator = torch.Generator().manual_seed(5)
    bits = torch.randint(-(2**31), 2**31, (100,), generator=generator).to(torch.int32)
    scales = torch.cat([torch.tensor(SCALES), bits.view(torch.float32)]).cuda()
    for chosen in scales.split(heads):
        chosen = torch.nn.functional.pad(chosen, (0, heads - len(chosen)), value=1.0)
        kvexp.reshape_and_cache_flash(rows, rows, *caches, slots, cache, chosen, chosen.flip(0), impl=impl)
        for plane, scale in zip(caches, (chosen, chosen.flip(0)), strict=True):
            expected = quantize(rows, cache, scale).view(torch.uint8).view(plane.view(-1, heads, 128).shape)
            assert torch.equal(plane.view(-1, heads, 128), expected), scale.tolist()
