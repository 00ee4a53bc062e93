import pytest

from kvexp.errors import Unsupported
from tests import composed, law
from tests.contract import Contract

ON_CPU = [name for name in composed.options("impl") if name != "cuda"]


@pytest.fixture(params=ON_CPU)
def impl(request):
    return request.param


@pytest.fixture
def device():
    return "cpu"


class TestContractOnCpu(Contract):
    pass


def test_cuda_says_that_it_needs_a_gpu_and_what_to_type_instead():
    with pytest.raises(Unsupported, match=r"needs an NVIDIA GPU.*impl=torch"):
        law.implementation("cuda", "cpu")
