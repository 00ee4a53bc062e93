"""The launches of Triton's implementation that go past Triton's own dispatch."""

import pytest
import torch

from kvexp.impl.triton import Triton
from tests.helpers import compose, oracle

DEVICE = "cuda:0"
PAIRS = compose.pairs()
OFFS = {"aligned": (0, 0), "half aligned": (4, 0), "the other half": (0, 4), "odd": (1, 3)}


def addresses(posed):
    tensors = (posed.key, posed.value, *posed.caches, posed.slot_mapping, posed.k_scale, posed.v_scale)
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def posed_for(op, layout, num_tokens, offs=(0, 0), **asked):
    posed = oracle.problem(
        DEVICE, oracle.shuffled(num_tokens, 4096 * 16, seed=num_tokens), op=op, layout=layout, num_heads=8,
        head_size=128, num_blocks=4096, **asked,
    )  # fmt: skip
    posed.key, posed.value = oracle.moved(posed.key, offs[0]), oracle.moved(posed.value, offs[1])
    return posed


def assert_launches(launcher, posed):
    expected = posed.expected()
    launcher.prepare(len(posed.slot_mapping))(*addresses(posed))
    assert torch.equal(posed.storage, expected)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize(("op", "layout"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_one_launcher_serves_any_number_of_tokens(op, layout, kv_cache_dtype):
    impl = oracle.implementation("triton", DEVICE)
    first = posed_for(op, layout, 1, kv_cache_dtype=kv_cache_dtype)
    launcher = impl.launcher(op, *first.arguments)
    for num_tokens in (1, 3, 33, 3000):
        assert_launches(launcher, posed_for(op, layout, num_tokens, kv_cache_dtype=kv_cache_dtype))


@pytest.mark.parametrize("first", OFFS)
@pytest.mark.parametrize("then", OFFS)
@pytest.mark.parametrize("op", compose.cache_writes())
def test_one_launcher_serves_every_address_of_its_alignment_class(op, first, then):
    layout = compose.experiment(f"op={op}").layout.name
    posed, other = (posed_for(op, layout, 5, OFFS[off]) for off in (first, then))
    launcher = oracle.implementation("triton", DEVICE).launcher(op, *posed.arguments)
    classes = [(one.key.data_ptr() | one.value.data_ptr()) & 15 for one in (posed, other)]
    assert_launches(launcher, other if classes[0] == classes[1] else posed)


@pytest.mark.parametrize("op", compose.cache_writes())
def test_a_launch_goes_to_the_current_stream(op):
    posed = posed_for(op, compose.experiment(f"op={op}").layout.name, 64)
    launcher = oracle.implementation("triton", DEVICE).launcher(op, *posed.arguments)
    expected = posed.expected()
    launch = launcher.prepare(64)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        launch(*addresses(posed))
    assert not torch.equal(posed.storage, expected)
    graph.replay()
    assert torch.equal(posed.storage, expected)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e4m3"])
@pytest.mark.parametrize("op", compose.cache_writes())
def test_warps_and_stages_of_the_seed_write_the_same(op, kv_cache_dtype):
    posed = posed_for(op, compose.experiment(f"op={op}").layout.name, 33, kv_cache_dtype=kv_cache_dtype)
    made = Triton(DEVICE, num_warps=16, num_stages=10, tile_tokens=1, tile_columns=1024)
    assert_launches(made.launcher(op, *posed.arguments), posed)


def test_scales_that_are_not_read_may_be_none():
    posed = oracle.without_scales(posed_for(oracle.FLASH, "NHD", 7))
    assert_launches(oracle.implementation("triton", DEVICE).launcher(posed.op, *posed.arguments), posed)
