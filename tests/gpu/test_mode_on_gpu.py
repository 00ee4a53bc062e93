"""Calls become a CUDA graph, whatever memory is left."""

import pytest
import torch

from kvexp.bench.mode import prepare

pytestmark = pytest.mark.alone

GIB = 1 << 30


@pytest.fixture(autouse=True)
def stream():
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
        torch.cuda.synchronize()
    torch.cuda.empty_cache()


def test_calls_are_captured_and_not_run_until_they_are_replayed_in_order():
    total = torch.ones((), device="cuda")
    replay = prepare("cudagraph", [lambda: total.add_(1), lambda: total.mul_(3)])
    assert float(total) == 1
    replay()
    replay()
    assert float(total) == 21


def test_a_call_can_allocate_the_memory_that_torch_has_cached():
    """While it captures, torch gives nothing back to the driver; nor what a failed capture had allocated."""
    held = torch.empty(torch.cuda.mem_get_info()[0] - 3 * GIB, dtype=torch.uint8, device="cuda")
    kept = torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
    del kept
    assert torch.cuda.mem_get_info()[0] < 1.5 * GIB
    sizes, made = (GIB // 2, 2 * GIB + GIB // 4), []

    def call():
        made[:] = [torch.ones(size, dtype=torch.uint8, device="cuda") for size in sizes]

    replay = prepare("cudagraph", [call])
    replay()
    del held
    torch.cuda.empty_cache()
    assert [int(tensor.sum(dtype=torch.int64)) for tensor in made] == list(sizes)


def test_running_out_of_memory_is_an_error_that_says_so():
    with pytest.raises(torch.OutOfMemoryError):
        prepare("cudagraph", [lambda: torch.empty(1 << 50, dtype=torch.uint8, device="cuda")])
    test_calls_are_captured_and_not_run_until_they_are_replayed_in_order()


def test_after_a_call_that_cannot_be_captured_another_one_can():
    with pytest.raises(RuntimeError, match="captur"):
        prepare("cudagraph", [torch.cuda.synchronize])
    test_calls_are_captured_and_not_run_until_they_are_replayed_in_order()
