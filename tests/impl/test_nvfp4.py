"""reshape_and_cache_flash_nvfp4 on a CPU: its contract, any call, Triton interpreted, CUDA compiled."""

import pytest

from tests.helpers import nvfp4
from tests.impl.test_any_shape import IMPLS


@pytest.fixture(params=[*IMPLS, "library/torch"])
def impl(request):
    return request.param


@pytest.fixture
def device():
    return "cpu"


class TestContract(nvfp4.Nvfp4Contract):
    """On a CPU."""
