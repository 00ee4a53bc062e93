from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvexp.errors import Unsupported
from kvexp.op import cache_item_bytes
from kvexp.op.reshape_and_cache_flash import ReshapeAndCacheFlash
from tests import composed

OP = ReshapeAndCacheFlash()


def case(*overrides):
    made = composed.experiment("workload=tiny", "workload.num_tokens=16", "impl=torch", *overrides)
    return next(made.resolved("cpu").cases())


@pytest.mark.parametrize("kv_cache_dtype", composed.options("kv_cache_dtype"))
@pytest.mark.parametrize("layout", composed.options("layout"))
def test_it_is_defined_for_the_layouts_of_two_planes(layout, kv_cache_dtype):
    made = case(f"layout={layout}", f"kv_cache_dtype={kv_cache_dtype}")
    if layout in OP.layouts:
        assert OP.check(made, 2) is None
    else:
        with pytest.raises(Unsupported, match=f"not {layout}"):
            OP.check(made, 2)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"layout": "head_major"},
            "op=reshape_and_cache_flash writes the layouts NHD, HND, not head_major",
        ),
        (
            {"head_size_v": 16},
            "op=reshape_and_cache_flash writes K and V of one head size, not 32 and 16",
        ),
        (
            {"head_size": 24, "head_size_v": 24, "kv_cache_dtype": "fp8_e4m3"},
            "head_size 24 is not a multiple of 16, which kv_cache_dtype=fp8_e4m3 needs",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_in_a_sentence(changed, sentence):
    with pytest.raises(Unsupported) as raised:
        OP.check(replace(case(), **changed), 2)
    assert str(raised.value) == sentence


def test_any_head_size_is_copied():
    assert OP.check(replace(case(), head_size=45, head_size_v=45), 2) is None


@pytest.mark.parametrize(
    ("item_bytes", "kv_cache_dtype", "read", "written"),
    [(2, "auto", 2, 2), (4, "auto", 4, 4), (2, "fp8_e4m3", 2, 1), (4, "fp8_e4m3", 4, 1)],
)
def test_rows_and_slots_are_read_and_rows_are_written(item_bytes, kv_cache_dtype, read, written):
    items = 16 * 2 * (32 + 32)
    moved = OP.bytes_moved(replace(case(), kv_cache_dtype=kv_cache_dtype), item_bytes)
    assert moved == (items * read + 16 * 8, items * written)


def test_a_cache_item_is_the_source_s_or_one_byte():
    assert [cache_item_bytes("auto", 4), cache_item_bytes("fp8_e4m3", 4)] == [4, 1]


def test_it_is_bound_to_the_slots_that_are_given():
    names = ("key", "value", "key_cache", "value_cache", "kv_cache_dtype", "k_scale", "v_scale")
    tensors = SimpleNamespace(**{name: name for name in names})
    impl = SimpleNamespace(name="echo", reshape_and_cache_flash=lambda *arguments: arguments)
    assert OP.bind(impl, tensors, "these slots") == (
        "key", "value", "key_cache", "value_cache", "these slots", "kv_cache_dtype", "k_scale", "v_scale",
    )  # fmt: skip


def test_an_implementation_without_it_is_refused():
    with pytest.raises(Unsupported) as raised:
        OP.bind(SimpleNamespace(name="other"), None, None)
    assert str(raised.value) == "impl=other has no reshape_and_cache_flash"
