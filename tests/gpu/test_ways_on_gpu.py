"""Transfers between a GPU, the host and another GPU, by each implementation."""

import pytest
import torch

from kvexp.bench import environment, run_curve
from kvexp.impl import Refreshing
from tests.helpers import compose

LAYOUTS = [name for name in compose.layouts() if name != "head_major"]
TRANSFER = (
    "op=transfer",
    "workload=llama3_8b",
    "workload.num_blocks=256",
    "workload.num_layers=3",
    "workload.num_tokens=[1,40,1024]",
)
NO_GRAPH = ("mode=no_graph", "timer=none")


def measured(*overrides):
    made = compose.experiment(*TRANSFER, *overrides).resolve("cuda:0")
    return list(run_curve.run(made, environment.read("cuda:0")))


def assert_status(expected, *overrides):
    points = measured(*overrides)
    for point in points:
        assert point.status == expected, point.reason
    return points


@pytest.mark.parametrize("to", ["device", "host", "from_host"])
@pytest.mark.parametrize("impl", ["cuda", "torch", *compose.COPY_ENGINES])
def test_every_way_is_right(impl, to):
    for layout in LAYOUTS:
        for ranks in ("workload.tp_from=1", "workload.tp_from=4"):
            chosen = (f"impl={impl}", f"workload.to={to}", f"layout={layout}", ranks, *NO_GRAPH)
            refused = impl == "staged" and to == "from_host"
            assert_status("skipped" if refused else "verified", *chosen)


@pytest.mark.parametrize("to", ["host", "from_host"])
def test_a_captured_kernel_reaches_the_host(to):
    assert_status("verified", "impl=cuda", f"workload.to={to}", "mode=cudagraph", "timer=none")


@pytest.mark.parametrize("impl", compose.COPY_ENGINES)
def test_copy_engines_are_not_captured(impl):
    for point in assert_status("skipped", f"impl={impl}", "mode=cudagraph", "timer=none"):
        assert "take mode=no_graph" in point.reason


@pytest.mark.parametrize("impl", ["batch", "memcpy2d"])
def test_numbers_of_the_binding_are_found(impl, monkeypatch):
    monkeypatch.setattr(Refreshing, "refresh", lambda self: None)
    for point in assert_status("incorrect", f"impl={impl}", *NO_GRAPH):
        assert "keeps what it saw" in point.reason


@pytest.mark.parametrize("sms", [1, 7, 132])
@pytest.mark.parametrize("head_size", [45, 128])
def test_fewer_multiprocessors_copy_the_same(sms, head_size):
    for layout in LAYOUTS:
        chosen = (f"impl.sms={sms}", f"workload.head_size={head_size}", f"layout={layout}")
        assert_status("verified", "impl=cuda", *chosen, "timer=none")


def test_what_has_no_loop_refuses_a_limit():
    made = compose.experiment("impl=cuda", "impl.sms=8", "workload=tiny", "timer=none").resolve("cuda:0")
    for point in run_curve.run(made, environment.read("cuda:0")):
        assert (point.status, "impl.sms" in point.reason) == ("skipped", True)


def test_memory_that_cannot_be_pinned_is_refused():
    huge = ("workload.num_blocks=2000000", "workload.num_layers=32")
    for point in assert_status("skipped", "impl=cuda", "workload.to=host", *huge, *NO_GRAPH):
        assert "free" in point.reason


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="one GPU alone has no peer")
def test_without_a_second_gpu_there_is_no_peer():
    for point in assert_status("skipped", "impl=cuda", "workload.to=peer", *NO_GRAPH):
        assert point.reason == "workload.to=peer needs a second GPU, and this process sees 1"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("impl", ["cuda", "torch", *compose.COPY_ENGINES])
def test_a_peer_is_reached(impl):
    for layout in LAYOUTS:
        assert_status("verified", f"impl={impl}", "workload.to=peer", f"layout={layout}", *NO_GRAPH)


@pytest.mark.parametrize("to", ["device", "host", "from_host"])
@pytest.mark.parametrize("impl", ["cuda", "batch", "memcpy2d", "staged"])
@pytest.mark.alone
def test_they_are_timed_beside_one_copy(impl, to):
    if (impl, to) == ("staged", "from_host"):
        return
    # The host submits to copy engines more slowly than they copy inside a GPU, so no event can be queued.
    clock = "cuda_event" if impl == "cuda" else "wall_clock"
    limits = ("workload.num_tokens=[1024]", f"timer={clock}", "timer.max_seconds=0.2")
    for point in assert_status("ok", f"impl={impl}", f"workload.to={to}", "mode=no_graph", *limits):
        assert point.copy_us
        assert point.copy_us < 4 * point.statistics.latency_us
