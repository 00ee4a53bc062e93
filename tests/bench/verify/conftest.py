import pytest

from kvexp.bench import verify
from kvexp.gpu import scan
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


@pytest.fixture(params=["at once", "in pieces"])
def looked_at(request, monkeypatch):
    """Check rows and cache in chunks, as a real curve does, or as a whole."""
    if request.param == "in pieces":
        # Five rows of the cache at once; the cache in pieces that its size is no multiple of.
        monkeypatch.setattr(verify, "ROWS_BYTES", 5 * 2 * 32 * 2)
        monkeypatch.setattr(scan, "CHUNK_WORDS", 513)


@pytest.fixture(params=compose.layouts())
def layout(request):
    return request.param


@pytest.fixture(params=compose.by_turns(compose.layouts(), KINDS, 3), ids="-".join)
def tensors(request):
    layout, kind = request.param
    with point(layout=layout, **KINDS[kind]) as made:
        yield made
