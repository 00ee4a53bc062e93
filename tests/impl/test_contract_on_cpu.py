import pytest
import torch

from kvexp.errors import Unsupported
from tests.helpers import compose, oracle
from tests.helpers.contract import Contract

# Triton interprets where there is no GPU; where there is one it is under test there.
NOT_ON_CPU = {"cuda", "triton"} if torch.cuda.is_available() else {"cuda"}
ON_CPU = [name for name in compose.implementations() if name not in NOT_ON_CPU]


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
        oracle.implementation("cuda", "cpu")
