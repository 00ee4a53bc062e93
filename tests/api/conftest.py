import pytest

from tests.api.calls import OPS


@pytest.fixture(params=OPS)
def op(request):
    return request.param
