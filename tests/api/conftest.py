import pytest

from tests.helpers.library_calls import OPS


@pytest.fixture(params=OPS)
def op(request):
    return request.param
