import pytest
import torch

from tests.helpers import compose

IMPLS = compose.implementations()


@pytest.fixture(params=[*IMPLS, *(f"library/{name}" for name in IMPLS)])
def impl(request):
    """Return each implementation by its name, and again as a function of the library."""
    return request.param


@pytest.fixture
def device():
    """Return the GPU that is tested."""
    return "cuda:0"


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.path.parts and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
