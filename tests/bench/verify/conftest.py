from itertools import product

import pytest

from tests.helpers import compose
from tests.helpers.strides import point

# How the point differs from one of plain rows: its types, its layers, its views.
KINDS = {
    "plain": {},
    "per head": {"kv_cache_dtype": "fp8_e4m3", "scale": "per_head"},
    "e5m2": {"kv_cache_dtype": "fp8_e5m2"},
    "eight bits": {"dtype": "fp8_e5m2", "kv_cache_dtype": "fp8_e5m2"},
    "float": {"dtype": "float"},
    "layers": {"num_layers": 3},
    "views": {"rows": "qkv", "extra_tokens": 2},
}


@pytest.fixture(params=compose.options("layout"))
def layout(request):
    return request.param


# Each layout and each kind, with every third of the other.
CHOSEN = [
    (layout, kind)
    for (i, layout), (j, kind) in product(enumerate(compose.options("layout")), enumerate(KINDS))
    if (i + j) % 3 == 0
]


@pytest.fixture(params=CHOSEN, ids="-".join)
def tensors(request):
    layout, kind = request.param
    with point(layout=layout, **KINDS[kind]) as made:
        yield made
