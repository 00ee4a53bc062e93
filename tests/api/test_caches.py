"""Caches that the library allocates lie as the layouts say, and the ops write them."""

import re

import numpy
import pytest
import torch

import kvexp
from tests.helpers import compose

SIZES = {"num_blocks": 3, "block_size": 4, "num_heads": 2, "head_size": 16, "device": "cpu"}
FLASH = [layout for op, layout in compose.pairs() if op == "reshape_and_cache_flash"]


@pytest.mark.parametrize("layout", FLASH)
def test_a_flash_cache_is_written_in_its_slot(layout):
    cache = kvexp.allocate(layout, **SIZES)
    key, value = torch.randn(2, 2, 2, 16).bfloat16()
    slots = torch.tensor([7, 2])
    kvexp.reshape_and_cache_flash(key, value, *cache[:2], slots, "auto", impl="torch")
    assert torch.equal(cache.key_cache[1, 3], key[0])
    assert torch.equal(cache.value_cache[0, 2], value[1])
    if cache.kv_cache is not None:
        assert torch.equal(cache.kv_cache[1, 3], torch.cat([key[0], value[0]], -1))
    assert sum(int(plane.count_nonzero()) for plane in cache[:2]) == int(
        torch.stack([key, value]).count_nonzero()
    )


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_the_stride_order_of_two_planes_is_that_of_their_memory(layout):
    cache = kvexp.allocate(layout, **SIZES)
    distance = cache.value_cache.storage_offset() - cache.key_cache.storage_offset()
    strides = (cache.key_cache.stride(0), distance, *cache.key_cache.stride()[1:])
    order = kvexp.stride_order(layout)
    assert [strides[dim] for dim in order] == sorted(strides, reverse=True)


@pytest.mark.parametrize("layout", ["NHD_packed", "HND_packed", "BHLNC", "LHBNC"])
def test_the_stride_order_of_a_packed_plane_is_that_of_its_memory(layout):
    strides = kvexp.allocate(layout, **SIZES).kv_cache.stride()
    assert [strides[dim] for dim in kvexp.stride_order(layout)] == sorted(strides, reverse=True)


def test_the_head_major_cache_has_no_stride_order():
    with pytest.raises(ValueError, match="tensors of different shapes"):
        kvexp.stride_order("head_major")


def test_a_cache_without_heads_has_kv_c_and_k_pe_side_by_side():
    sizes = SIZES | {"num_heads": 1}
    for width in (4, 0):
        first, second = kvexp.allocate_layers(2, "mla", **sizes, head_size_v=width)
        assert second.kv_cache.shape == (3, 4, 16 + width)
        assert second.kv_cache.stride() == (2 * 4 * (16 + width), 16 + width, 1)
        second.key_cache.fill_(1)
        second.value_cache.fill_(2)
        assert second.kv_cache[2, 3].tolist() == [1] * 16 + [2] * width
        assert not first.kv_cache.any()
    assert kvexp.stride_order("mla") == (0, 1, 2)


@pytest.mark.parametrize(
    ("kv_cache_dtype", "x", "item"), [("auto", 8, torch.bfloat16), ("fp8", 16, torch.uint8)]
)
def test_a_head_major_cache_holds_pieces_of_sixteen_bytes(kv_cache_dtype, x, item):
    cache = kvexp.allocate("head_major", **SIZES, kv_cache_dtype=kv_cache_dtype)
    assert cache.key_cache.shape == (3, 2, 16 // x, 4, x)
    assert cache.value_cache.shape == (3, 2, 16, 4)
    assert cache.key_cache.dtype == cache.value_cache.dtype == item
    assert cache.kv_cache is None


def test_head_major_caches_are_contiguous_and_each_layer_is_whole():
    layers = kvexp.allocate_layers(3, "head_major", **SIZES)
    caches = [cache for layer in layers for cache in (layer.key_cache, layer.value_cache)]
    assert len({cache.untyped_storage().data_ptr() for cache in caches}) == 1
    assert all(cache.is_contiguous() for cache in caches)
    each = caches[0].numel()
    assert [cache.storage_offset() for cache in caches] == [place * each for place in range(6)]


@pytest.mark.parametrize("layout", FLASH)
def test_fp8_caches_of_flash_have_heads_of_any_size(layout):
    cache = kvexp.allocate(layout, **SIZES | {"head_size": 7}, kv_cache_dtype="fp8")
    assert cache.key_cache.shape == cache.value_cache.shape == (3, 4, 2, 7)
    assert cache.key_cache.dtype == torch.uint8


@pytest.mark.parametrize("layout", compose.layouts())
def test_layers_share_one_storage_and_no_element(layout):
    layers = kvexp.allocate_layers(3, layout, **SIZES)
    storages = {layer.key_cache.untyped_storage().data_ptr() for layer in layers}
    assert len(storages) == 1
    for layer, cache in enumerate(layers):
        cache.key_cache.fill_(layer + 1)
        cache.value_cache.fill_(-layer - 1)
    for layer, cache in enumerate(layers):
        assert cache.key_cache.unique().tolist() == [layer + 1]
        assert cache.value_cache.unique().tolist() == [-layer - 1]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"layout": "XYZ"},
            "layout 'XYZ' is not one of NHD, HND, NHD_packed, HND_packed, BHLNC, LHBNC, head_major, mla, "
            "indexer",
        ),
        ({"num_blocks": 0}, "num_blocks must be a positive whole number, not 0"),
        ({"num_blocks": True}, "num_blocks must be a positive whole number, not True"),
        ({"num_heads": numpy.bool_(True)}, "num_heads must be a positive whole number, not np.True_"),
        ({"block_size": numpy.int64(-1)}, "block_size must be a positive whole number, not np.int64(-1)"),
        (
            {"head_size_v": numpy.float64(16)},
            "head_size_v must be a positive whole number, not np.float64(16.0)",
        ),
        (
            {"num_blocks": numpy.array([3, 4])},
            "num_blocks must be a positive whole number, not array([3, 4])",
        ),
        ({"num_blocks": torch.tensor(3)}, "num_blocks must be a positive whole number, not tensor(3)"),
        ({"num_blocks": "3"}, "num_blocks must be a positive whole number, not '3'"),
        ({"head_size": 1.5}, "head_size must be a positive whole number, not 1.5"),
        (
            {"kv_cache_dtype": "int4"},
            "kv_cache_dtype must be one of auto, fp8, fp8_e4m3, fp8_e5m2, not 'int4'",
        ),
        (
            {"layout": "mla"},
            "num_heads must be 1 in layout 'mla', which has no heads, not 2",
        ),
        ({"head_size_v": 0}, "head_size_v must be a positive whole number, not 0"),
        (
            {"layout": "head_major", "head_size": 20},
            "head_size 20 is not a multiple of 8, the items of 16 bytes",
        ),
        (
            {"layout": "head_major", "kv_cache_dtype": "fp8", "head_size": 24},
            "head_size 24 is not a multiple of 16, the items of 16 bytes",
        ),
    ],
)
def test_what_cannot_be_allocated_is_named(changed, sentence):
    arguments = {"layout": "NHD", **SIZES, **changed}
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        kvexp.allocate(**arguments)


@pytest.mark.parametrize("device", ["cuda:99", torch.device("cuda", 99), "gpu", "mps"])
def test_a_device_that_is_not_there_is_one_sentence(device):
    with pytest.raises(ValueError, match=rf"^device '{device}' cannot be used here \(.+\); 'cpu' can$"):
        kvexp.allocate("NHD", **SIZES | {"device": device})


@pytest.mark.parametrize("kind", [numpy.int64, numpy.int32, numpy.uint8, numpy.array])
@pytest.mark.parametrize("layout", compose.layouts())
def test_sizes_may_be_whole_numbers_of_numpy(layout, kind):
    if layout == "auto":
        pytest.skip("the library takes a layout's own name")
    sizes = {"num_blocks": 3, "block_size": 4, "num_heads": 2, "head_size": 16, "head_size_v": 16}
    expected = kvexp.allocate_layers(2, layout, **sizes, device="cpu")
    of_numpy = {name: kind(size) for name, size in sizes.items()}
    found = kvexp.allocate_layers(kind(2), layout, **of_numpy, device="cpu")
    places = [
        [(plane.shape, plane.stride(), plane.storage_offset()) for plane in cache if plane is not None]
        for layers in (found, expected)
        for cache in layers
    ]
    assert places[:2] == places[2:]


@pytest.mark.parametrize("number", [0, True, numpy.bool_(True), 1.0])
def test_the_number_of_layers_is_checked_as_other_sizes_are(number):
    with pytest.raises(ValueError, match=r"^num_layers must be a positive whole number, not "):
        kvexp.allocate_layers(number, "NHD", **SIZES)


def test_a_layout_is_selected_as_an_engine_would(monkeypatch):
    monkeypatch.delenv("KVEXP_KV_CACHE_LAYOUT", raising=False)
    monkeypatch.setenv("VLLM_KV_CACHE_LAYOUT", "HND")
    assert kvexp.select_layout() == ("HND", "VLLM_KV_CACHE_LAYOUT=HND")
    seed = {"FLASHINFER_KV_CACHE_LAYOUT": "HND"}
    assert kvexp.select_layout(environ=seed) == ("HND", "FLASHINFER_KV_CACHE_LAYOUT=HND")
    assert kvexp.select_layout(environ={}).layout == "NHD"
    assert kvexp.select_layout(environ={}, wish="HND").layout == "HND"
    assert kvexp.select_layout("reshape_and_cache_flash_diffkv", environ={}).layout == "NHD_packed"


def test_what_is_asked_of_a_selection_is_checked():
    with pytest.raises(ValueError, match="layout 'XYZ' is not one of NHD"):
        kvexp.select_layout(environ={}, wish="XYZ")
    with pytest.raises(ValueError, match=r"op must be one of concat_and_cache_mla, .*, not 'nonsense'"):
        kvexp.select_layout("nonsense", environ={})


def test_a_cache_has_a_type_that_an_op_writes():
    with pytest.raises(TypeError, match=r"dtype must be one of float16, .*, not torch\.float64"):
        kvexp.allocate("NHD", **SIZES, dtype=torch.float64)


def test_an_unknown_name_in_the_environment_is_a_value_error():
    for variable in ("KVEXP_KV_CACHE_LAYOUT", "VLLM_KV_CACHE_LAYOUT", "FLASHINFER_KV_CACHE_LAYOUT"):
        with pytest.raises(ValueError, match=f"{variable}=nhd is not a layout; it can be NHD, HND"):
            kvexp.select_layout(environ={variable: "nhd"})
