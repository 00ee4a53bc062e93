"""The library's functions where only a GPU can show it; the contract itself is in test_contract_on_gpu."""

import threading
from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

import kvexp
from kvexp.op import arguments
from tests.gpu import host_time
from tests.helpers import compose, oracle
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

DEVICE = "cuda:0"
IMPLS = compose.implementations()

several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(params=IMPLS)
def impl(request):
    return request.param


def called(posed, impl, **options):
    getattr(kvexp, posed.op)(*posed.arguments, impl=impl, **options)


def test_a_call_runs_on_the_current_stream(impl):
    posed = oracle.problem(DEVICE, oracle.shuffled(64, 128))
    called(posed, impl)
    torch.cuda.synchronize()
    key = posed.key.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        posed.key.copy_(-key)
        expected_key = -key
        called(posed, impl)
    stream.synchronize()
    slot = int(posed.slot_mapping[5])
    assert torch.equal(posed.key_cache[slot // 16, slot % 16], expected_key[5])


def test_the_flash_function_writes_either_shape_of_caches_again_and_again(impl):
    """From the second round on each is a known kind, launched without validation."""
    for seed in range(3):
        for op in (FLASH, PAGED):
            posed = oracle.problem(DEVICE, oracle.shuffled(9, 128, seed), op=op, kv_cache_dtype="fp8")
            expected = posed.expected()
            kvexp.reshape_and_cache_flash(*posed.arguments, impl=impl)
            torch.cuda.synchronize()
            assert torch.equal(posed.storage, expected)


def test_checking_slots_is_refused_while_a_graph_is_captured(impl):
    posed = oracle.problem(DEVICE, [5, 6])
    called(posed, impl)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(ValueError, match="check_slots=True waits for the GPU, which the capture"):
            called(posed, impl, check_slots=True)
        called(posed, impl)


def test_a_slot_past_the_last_is_said_when_asked_and_nothing_is_written(impl):
    posed = oracle.problem(DEVICE, [5, 128])
    before = posed.storage.clone()
    with pytest.raises(ValueError, match=r"slot_mapping\[1\] is 128, past the last of the cache's 128 slots"):
        called(posed, impl, check_slots=True)
    assert torch.equal(posed.storage, before)


def test_a_new_thread_can_be_the_first_to_call(impl):
    posed = oracle.problem(DEVICE, oracle.shuffled(9, 128))
    called(posed, impl)
    posed = oracle.problem(DEVICE, oracle.shuffled(9, 128))
    expected = posed.expected()
    failures = []

    def run():
        try:
            called(posed, impl)
        except Exception as error:  # noqa: BLE001  # shown below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert failures == []
    assert torch.equal(posed.storage, expected)


@pytest.mark.long
@pytest.mark.parametrize("op", compose.cache_writes())
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_without_a_break(impl, op, backend):
    def step(key, *others):
        getattr(kvexp, op)(key * 2, *others, impl=impl)
        return key.sum()

    torch._dynamo.reset()
    posed = oracle.problem(DEVICE, [5, 1, 9], op=op)
    posed.key, posed.value = posed.key.clone(), posed.value.clone()
    expected = replace(posed, key=posed.key * 2).expected()
    if op == PAGED and backend == "inductor":
        # Where they are views of one allocation torch 2.11 writes wrong bytes; docs/library.md says so.
        views = posed.key_cache, posed.value_cache
        posed.key_cache, posed.value_cache = (cache.clone() for cache in views)
    torch.compile(step, fullgraph=True, backend=backend)(*posed.arguments)
    if op == PAGED and backend == "inductor":
        for view, cache in zip(views, (posed.key_cache, posed.value_cache), strict=True):
            view.copy_(cache)
    assert torch.equal(posed.storage, expected)


@pytest.mark.parametrize("op", compose.cache_writes())
def test_the_registered_op_passes_torch_s_own_check(impl, op):
    posed = oracle.problem(DEVICE, [5, 1, 9], op=op, kv_cache_dtype="fp8", scale="per_head")
    outcome = opcheck(getattr(torch.ops.kvexp, op).default, (*posed.arguments, impl, False))
    assert set(outcome.values()) == {"SUCCESS"}


def test_tensors_on_two_devices_are_refused(impl):
    posed = oracle.problem(DEVICE, [5, 1, 9])
    posed.slot_mapping = posed.slot_mapping.cpu()
    with pytest.raises(ValueError, match="slot_mapping must be on cuda:0 as key is, not on cpu"):
        called(posed, impl)


@several
@pytest.mark.parametrize("op", compose.cache_writes())
def test_another_device_than_the_current_one_is_written(impl, op):
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        posed = oracle.problem(
            device, oracle.shuffled(33, 128), op=op, kv_cache_dtype="fp8", scale="per_head"
        )
        expected = posed.expected()
        called(posed, impl)
        assert torch.equal(posed.storage, expected)
        assert torch.cuda.current_device() == 0


@several
def test_tensors_on_two_gpus_are_refused(impl):
    posed, other = oracle.problem(DEVICE, [5]), oracle.problem("cuda:1", [5])
    posed.value = other.value
    with pytest.raises(ValueError, match="value must be on cuda:0 as key is, not on cuda:1"):
        called(posed, impl)


@pytest.mark.alone
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_an_eager_call_costs_the_host_little_more_than_the_launch(name):
    """No bound in microseconds: hosts differ in the driver and in Python; see docs/library.md."""
    part, looks = host_time.beside_the_driver(
        name, oracle.problem(DEVICE, oracle.shuffled(32, 128), op=FLASH)
    )
    assert part <= 1.15
    assert looks <= 1.0


def test_a_later_call_of_no_tensors_or_of_too_few_rows_is_still_refused(impl):
    posed = oracle.problem(DEVICE, [5, 1, 9])
    called(posed, impl)
    with pytest.raises(TypeError, match=r"key must be a torch\.Tensor, not list"):
        called(replace(posed, key=[1.0]), impl)
    with pytest.raises(ValueError, match="value must have a row for each of the 3 tokens"):
        called(replace(posed, value=posed.value[:2]), impl)
    with pytest.raises(TypeError, match="slot_mapping must be int64, not int32"):
        called(replace(posed, slot_mapping=posed.slot_mapping.int()), impl)


def test_a_call_that_a_guard_accepts_is_not_validated_again(impl, monkeypatch):
    if impl == "torch":
        pytest.skip("indexing has no launcher")
    called(oracle.problem(DEVICE, [5, 1, 9], num_heads=7), impl)
    monkeypatch.setattr(arguments, "validate", None)
    other = oracle.problem(DEVICE, [127, 4, -1], num_heads=7)
    expected = other.expected()
    called(other, impl)
    assert torch.equal(other.storage, expected)


@pytest.mark.parametrize("caches", [(0, 0), (0, 4), (4, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("rows", [(0, 0), (0, 4), (4, 0), (1, 2)])
@pytest.mark.parametrize("op", compose.cache_writes())
def test_misaligned_tensors_are_only_slower_whatever_was_called_before(impl, op, rows, caches):
    """Aligned ones first, and each call twice, so that the second is one of a known kind."""
    called(oracle.problem(DEVICE, oracle.shuffled(9, 128), op=op), impl)
    for _ in range(2):
        posed = oracle.problem(DEVICE, oracle.shuffled(9, 128), op=op)
        names = ("kv_cache",) if op == DIFFKV else ("key_cache", "value_cache")
        offsets = {"key": rows[0], "value": rows[1], **dict(zip(names, caches, strict=False))}
        moved = {name: oracle.moved(getattr(posed, name), off) for name, off in offsets.items()}
        called(posed, "torch")
        called(replace(posed, **moved), impl)
        for name in names:
            # As words: random caches hold NaN.
            assert torch.equal(moved[name].view(torch.int16), getattr(posed, name).view(torch.int16))
