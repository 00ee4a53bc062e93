"""The CUDA transfer without a GPU: its index arithmetic in Python, and that every specialisation compiles."""

import itertools

import pytest
import torch

from kvexp.errors import Unsupported
from kvexp.gpu import nvrtc, scan
from kvexp.impl.cuda import transfer
from kvexp.impl.cuda.launcher import SOURCES
from kvexp.impl.cuda.options import Options
from kvexp.impl.torch import Torch
from kvexp.workload import GUARD_BYTES
from tests.helpers import compose, tiny_curve

LAYOUTS = [name for name in compose.layouts() if name != "head_major"]
RANKS = [(1, 2), (1, 4), (2, 1), (1, 1)]


@pytest.fixture
def posed(request):
    """Tensors of a request of two blocks and a half, in three layers."""
    chosen = {"op": "transfer", "num_layers": 3, "num_heads": 4, "num_tokens": 40, **request.param}
    with tiny_curve.memory(**chosen) as held:
        scan.poison(held.storage)
        yield held.build(tiny_curve.case(**chosen), 1)


def fit(tensors, **options):
    arguments = tensors.source, tensors.source_blocks, tensors.destination, tensors.places[0]
    return transfer.fit(*arguments, options=Options(**options))


def copy_by_vectors(tensors, spec):
    """Copy as the kernel does: vector after vector, by the constants that it is compiled with."""
    macros = {name: int(str(value).rstrip("ul")) for name, value in spec.macros}
    sizes = [macros[f"SIZE_{i}"] for i in range(4)]
    storage, source = tensors.memory.storage, tensors.memory.inputs
    begins = (
        tensors.source.storage_offset() * tensors.source.itemsize,
        tensors.destination.storage_offset() * tensors.destination.itemsize,
    )
    for before, after in zip(tensors.source_blocks.tolist(), tensors.places[0].tolist(), strict=True):
        for *at, vector in itertools.product(*map(range, sizes), range(macros["PIECE_VECTORS"])):
            places = [vector * macros["VEC"]] * 2
            for i, index in enumerate(at):
                places[0] += index * macros[f"FROM_{i}"]
                places[1] += index * macros[f"TO_{i}"]
            one = begins[0] + before * macros["SOURCE_BLOCK"] + places[0]
            other = begins[1] + after * macros["DESTINATION_BLOCK"] + places[1]
            storage[other : other + macros["VEC"]] = source[one : one + macros["VEC"]]


@pytest.mark.parametrize(
    "posed",
    [{"layout": layout, "tp_from": few, "tp_to": many} for layout in LAYOUTS for few, many in RANKS],
    ids=lambda chosen: f"{chosen['layout']} {chosen['tp_from']} to {chosen['tp_to']}",
    indirect=True,
)
def test_vectors_are_the_bytes_that_torch_copies(posed):
    spec, _, blocks = fit(posed)
    assert (blocks, spec.vec) == (3, 16)
    copy_by_vectors(posed, spec)
    found = posed.memory.storage.clone()
    scan.poison(posed.memory.storage)
    Torch("cpu").transfer(posed.source, posed.source_blocks, posed.destination, posed.places[0])()
    assert torch.equal(found, posed.memory.storage)
    assert spec.sizes(blocks)[0] * spec.vec == posed.memory.op.bytes_moved(posed.case, 2)[1]
    pieces, piece_bytes = posed.memory.op.count_pieces(posed.case, posed.memory.layout, 2)
    assert (pieces // 3, piece_bytes) == (spec.block_vectors // spec.piece_vectors, spec.piece_vectors * 16)


@pytest.mark.parametrize(
    ("posed", "vec"),
    [
        ({"head_size": 46, "layout": "NHD"}, 8),
        ({"head_size": 45, "layout": "NHD"}, 4),
        ({"head_size": 45, "layout": "HND"}, 16),
        ({"head_size": 45, "layout": "NHD", "kv_cache_dtype": "fp8"}, 2),
        ({"head_size": 45, "num_heads": 2, "layout": "NHD", "kv_cache_dtype": "fp8"}, 1),
        ({"head_size": 45, "head_size_v": 3, "layout": "NHD_packed"}, 16),
    ],
    ids=str,
    indirect=["posed"],
)
def test_vectors_are_as_wide_as_every_distance_allows(posed, vec):
    spec, _, _ = fit(posed)
    assert spec.vec == vec
    copy_by_vectors(posed, spec)
    assert torch.equal(
        posed.destination[:, :, posed.places[0]].contiguous().view(torch.uint8),
        posed.source[:, :, posed.source_blocks].contiguous().view(torch.uint8),
    )


@pytest.mark.parametrize(
    ("posed", "arch"),
    [
        *zip(
            [{"layout": layout} for layout in LAYOUTS],
            itertools.cycle(["sm_75", "sm_90", "sm_100"]),
            strict=False,
        )
    ],
    ids=str,
    indirect=["posed"],
)
def test_every_layout_compiles_without_a_gpu(posed, arch, tmp_path, monkeypatch):
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path))
    spec, _, _ = fit(posed)
    for options, blocks in ((Options(), 3), (Options(), 2**30), (Options(unroll=2, cta_threads=256), 3)):
        tuned = spec.tuned(options, blocks, 132)
        code = nvrtc.compile_cubin(SOURCES / "transfer.cu", dict(tuned.macros), arch)
        assert code[:4] == b"\x7fELF"


@pytest.mark.parametrize("posed", [{}], ids=str, indirect=True)
def test_few_vectors_are_one_a_thread_and_many_are_four(posed):
    spec, _, _ = fit(posed)
    one, many = (spec.tuned(Options(), blocks, 132) for blocks in (3, 2**20))
    assert (one.unroll, one.wide_index, many.unroll) == (1, False, 4)
    assert one.threads(3) == spec.block_vectors * 3
    assert many.threads(2**20) == spec.block_vectors * 2**18
    assert spec.tuned(Options(), 2**24, 132).wide_index
    assert spec.tuned(Options(unroll=8), 3, 132).unroll == 8
    with pytest.raises(Unsupported, match="blocks of fewer than 68719476736 bytes"):
        transfer.replace(spec, piece_vectors=2**32).tuned(Options(), 1, 132)


def test_the_guards_are_whole_vectors():
    assert GUARD_BYTES % transfer.VECTOR_BYTES == 0
