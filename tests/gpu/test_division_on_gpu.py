"""The division by a shared reciprocal gives what IEEE division gives, for every source item of 16 bits."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from kvexp import jit
from kvexp.impl.cuda.spec import SOURCES, Items

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


@pytest.fixture(params=["bfloat16", "float16"])
def source(request):
    return request.param


@pytest.fixture
def count(tmp_path, source):
    """The number of differences that a kernel of division.cu counts."""
    from cuda.core import LaunchConfig, Stream, launch

    for file in (Path(__file__).parent / "division.cu", SOURCES / "convert.cuh", SOURCES / "types.cuh"):
        shutil.copy(file, tmp_path)
    major, minor = torch.cuda.get_device_capability()

    def counted(name, threads, cache, *arguments):
        macros = (
            *Items(source, cache).macros,
            ("THREADS", THREADS),
            ("WIDE_INDEX", 0),
            ("SIGNIFICANDS", 1 << (7 if source == "bfloat16" else 10)),
        )
        wrong = torch.zeros(1, dtype=torch.int64, device="cuda")
        stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)
        kernel = jit.kernel(tmp_path / "division.cu", name, macros, f"sm_{major}{minor}")
        launch(
            stream, LaunchConfig(grid=threads // THREADS, block=THREADS), kernel, wrong.data_ptr(), *arguments
        )
        return wrong.item()

    return counted


def test_every_significand_by_every_scale_s(count):
    assert count("quotients", 2**23, "E4M3") == 0


@pytest.mark.parametrize("cache", ["E4M3", "E5M2"])
def test_every_item_by_scales_of_every_kind(count, cache):
    generator = torch.Generator().manual_seed(5)
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=generator).to(torch.int32)
    scales = torch.cat([torch.tensor(SCALES), bits.view(torch.float32)]).cuda()
    assert count("codes", 2**16, cache, scales.data_ptr(), scales.numel()) == 0
