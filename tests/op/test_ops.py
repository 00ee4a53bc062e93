"""What every op of conf/ must do: take its cases, count its bytes, bind its call."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvexp.errors import Unsupported
from kvexp.impl import make
from kvexp.op import FP8
from tests.helpers import compose, oracle, tiny_curve
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

OPS = {name: make(compose.choice("op", name)) for name in compose.cache_writes()}
LAYOUTS = {name: make(compose.choice("layout", name)) for name in compose.options("layout")}


@pytest.fixture(params=list(OPS))
def op(request):
    return OPS[request.param]


def refusal(op, item_bytes=2, layout=None, **changed):
    """Return the sentence of the refusal, or an empty one."""
    layout = layout or compose.layout_of(op.name)
    case = replace(tiny_curve.case(op=op.name, layout=layout, num_tokens=16), **changed)
    try:
        op.check(case, LAYOUTS[layout], item_bytes)
    except Unsupported as refused:
        return str(refused)
    return ""


def test_an_op_has_the_name_of_its_yaml():
    assert {name: op.name for name, op in OPS.items()} == {name: name for name in OPS}


def test_ops_write_the_layouts_that_have_their_planes():
    written = {name: {word for word in LAYOUTS if not refusal(op, layout=word)} for name, op in OPS.items()}
    assert written == {
        FLASH: {"NHD", "HND", "NHD_packed", "HND_packed", "BHLNC", "LHBNC"},
        DIFFKV: {"NHD_packed", "HND_packed", "BHLNC", "LHBNC"},
        PAGED: {"head_major"},
    }


@pytest.mark.parametrize(
    ("op", "layout", "sentence"),
    [
        (
            FLASH, "head_major",
            "op=reshape_and_cache_flash writes planes of [num_blocks, block_size, num_heads, head_size], "
            "which layout=head_major does not have; try layout=NHD",
        ),
        *(
            (DIFFKV, layout,
             "op=reshape_and_cache_flash_diffkv writes K and V side by side in one cache, which "
             f"layout={layout} is not; try layout=NHD_packed")
            for layout in ("NHD", "HND", "head_major")
        ),
        *(
            (PAGED, layout,
             f"op=reshape_and_cache writes head-major planes, which layout={layout} does not have; "
             "try layout=head_major")
            for layout in ("NHD", "HND", "NHD_packed", "HND_packed", "BHLNC", "LHBNC")
        ),
    ],
)  # fmt: skip
def test_a_layout_of_other_planes_is_refused_with_a_suitable_one(op, layout, sentence):
    assert refusal(OPS[op], layout=layout) == sentence
    assert not refusal(OPS[op], layout=sentence.rpartition("layout=")[2])


@pytest.mark.parametrize("kv_cache_dtype", compose.formats())
@pytest.mark.parametrize("dtype", oracle.WIDE)
def test_wide_rows_go_into_every_cache(op, dtype, kv_cache_dtype):
    item_bytes = oracle.DTYPES[dtype].itemsize
    for scale in ["per_tensor"] if kv_cache_dtype == "auto" else compose.options("scale"):
        assert not refusal(op, item_bytes, dtype=dtype, kv_cache_dtype=kv_cache_dtype, scale=scale)


@pytest.mark.parametrize("dtype", FP8)
def test_eight_bit_rows_go_into_a_cache_of_their_kind_alone(op, dtype):
    assert not refusal(op, 1, dtype=dtype, kv_cache_dtype=dtype)
    for kv_cache_dtype in {"auto", *FP8} - {dtype}:
        assert refusal(op, 1, dtype=dtype, kv_cache_dtype=kv_cache_dtype) == (
            f"dtype={dtype} goes into a cache of its own kind, kv_cache_dtype={dtype}, not {kv_cache_dtype}"
        )


def test_a_scale_that_nothing_reads_has_no_meaning(op):
    assert refusal(op, scale="per_head") == (
        "kv_cache_dtype=auto reads no scale, so scale=per_head has no meaning"
    )
    for dtype in FP8:
        assert refusal(op, 1, dtype=dtype, kv_cache_dtype=dtype, scale="per_head") == (
            f"dtype={dtype} is stored unscaled, so scale=per_head has no meaning"
        )


@pytest.mark.parametrize("name", [FLASH, PAGED])
def test_heads_of_two_sizes_are_diffkv_s_alone(name):
    assert refusal(OPS[name], head_size_v=16) == f"op={name} writes K and V of one head size, not 32 and 16"
    assert not refusal(OPS[DIFFKV], head_size_v=16)


@pytest.mark.parametrize("kv_cache_dtype", compose.formats())
@pytest.mark.parametrize("name", [FLASH, DIFFKV])
def test_any_head_size_is_written_into_flash_planes(name, kv_cache_dtype):
    for head_size in range(1, 65):
        assert not refusal(
            OPS[name], kv_cache_dtype=kv_cache_dtype, head_size=head_size, head_size_v=head_size
        )


@pytest.mark.parametrize("kv_cache_dtype", compose.formats())
def test_diffkv_takes_any_two_head_sizes(kv_cache_dtype):
    for head_size, head_size_v in ((192, 128), (46, 33), (1, 7), (16, 40)):
        assert not refusal(
            OPS[DIFFKV], kv_cache_dtype=kv_cache_dtype, head_size=head_size, head_size_v=head_size_v
        )


@pytest.mark.parametrize(
    ("item_bytes", "kv_cache_dtype", "x"),
    [(2, "auto", 8), (4, "auto", 4), *((size, fp8, 16) for size in (2, 4) for fp8 in FP8)],
)
def test_reshape_and_cache_takes_whole_pieces_of_sixteen_bytes(item_bytes, kv_cache_dtype, x):
    op = OPS[PAGED]
    for head_size in range(1, 65):
        sizes = {"head_size": head_size, "head_size_v": head_size}
        found = refusal(op, item_bytes, kv_cache_dtype=kv_cache_dtype, **sizes)
        assert found == (head_size % x > 0) * (
            f"head_size {head_size} is not a multiple of {x}, the cache items of 16 bytes, which "
            "op=reshape_and_cache needs"
        )


@pytest.mark.parametrize(
    ("dtype", "kv_cache_dtype", "read", "written"),
    [("half", "auto", 2, 2), ("float", "auto", 4, 4), ("half", "fp8_e4m3", 2, 1), ("float", "fp8_e5m2", 4, 1),
     ("fp8_e5m2", "fp8_e5m2", 1, 1)],
)  # fmt: skip
class TestBytesMoved:
    def test_are_rows_and_slots_read_and_rows_written(self, op, dtype, kv_cache_dtype, read, written):
        case = tiny_curve.case(op=op.name, num_tokens=16, kv_cache_dtype=kv_cache_dtype, head_size_v=48)
        items = 16 * 2 * (32 + 48)
        moved = op.bytes_moved(case, oracle.DTYPES[dtype].itemsize)
        assert moved == (items * read + 16 * 8, items * written)

    def test_count_the_slots_of_padding_and_no_rows_of_it(self, op, dtype, kv_cache_dtype, read, written):
        case = tiny_curve.case(op=op.name, num_tokens=16, kv_cache_dtype=kv_cache_dtype, padding=0.25)
        items = 12 * 2 * (32 + 32)
        moved = op.bytes_moved(case, oracle.DTYPES[dtype].itemsize)
        assert moved == (items * read + 16 * 8, items * written)

    def test_count_no_extra_tokens(self, op, dtype, kv_cache_dtype, read, written):
        chosen = {"op": op.name, "num_tokens": 16, "kv_cache_dtype": kv_cache_dtype}
        item_bytes = oracle.DTYPES[dtype].itemsize
        bare = op.bytes_moved(tiny_curve.case(**chosen), item_bytes)
        assert op.bytes_moved(tiny_curve.case(**chosen, extra_tokens=9), item_bytes) == bare


def test_a_cache_item_is_the_source_s_or_one_byte():
    cases = [tiny_curve.case(kv_cache_dtype=kind) for kind in ("auto", *FP8)]
    assert [case.cache_item_bytes(4) for case in cases] == [4, 1, 1]


def test_the_call_gets_what_the_op_takes_and_the_slots_that_are_given(op):
    caches = ("kv_cache",) if op.name == DIFFKV else ("key_cache", "value_cache")
    names = ("key", "value", *caches, "kv_cache_dtype", "k_scale", "v_scale")
    tensors = SimpleNamespace(**{name: name for name in names})
    impl = SimpleNamespace(name="echo", **{op.name: lambda *arguments: arguments})
    assert op.bind(impl, tensors, "these slots") == (
        "key", "value", *caches, "these slots", "kv_cache_dtype", "k_scale", "v_scale",
    )  # fmt: skip


def test_an_implementation_without_it_is_refused(op):
    with pytest.raises(Unsupported) as raised:
        op.bind(SimpleNamespace(name="other"), None, None)
    assert str(raised.value) == f"impl=other has no {op.name}"
