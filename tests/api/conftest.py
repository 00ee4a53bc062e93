import pytest

from tests.helpers import oracle
from tests.helpers.library_calls import OPS, SLOTS


@pytest.fixture(params=OPS)
def op(request):
    return request.param


@pytest.fixture
def posed(op):
    """A right call of three tokens."""
    return oracle.problem("cpu", SLOTS, op=op)
