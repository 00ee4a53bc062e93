import weakref
from typing import ClassVar

import pytest
import torch

from kvexp.bench.mode import check_mode, prepare
from kvexp.errors import Unsupported


@pytest.mark.parametrize(
    ("mode", "device"), [("no_graph", "cpu"), ("no_graph", "cuda:0"), ("cudagraph", "cuda:1")]
)
def test_a_device_has_its_modes(mode, device):
    assert check_mode(mode, device) is None


def test_a_cpu_has_no_cuda_graphs():
    with pytest.raises(Unsupported) as raised:
        check_mode("cudagraph", "cpu")
    assert str(raised.value) == "mode=cudagraph needs a GPU; on device=cpu use mode=no_graph"


def test_a_replay_without_a_graph_makes_every_call_in_order_each_time():
    made = []
    replay = prepare("no_graph", [lambda number=number: made.append(number) for number in range(4)])
    assert made == []
    replay()
    replay()
    assert made == [0, 1, 2, 3, 0, 1, 2, 3]


class Graph:
    """A graph that is played. `left` says for each capture what it raises at its end, if anything."""

    alive: ClassVar[list[weakref.ref]] = []
    left: ClassVar[list[str]] = []

    def __init__(self):
        self.alive.append(weakref.ref(self))

    def capture_begin(self):
        pass

    def capture_end(self):
        if self.left and (said := self.left.pop(0)):
            raise RuntimeError(said)

    def replay(self):
        pass


@pytest.fixture
def played(monkeypatch):
    """Graphs are played; gives what had become of earlier ones whenever free memory was given back."""
    found = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append([graph() for graph in Graph.alive]))
    Graph.alive.clear()
    Graph.left.clear()
    return found


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried", "CUDA error: out of memory"])
def test_a_capture_that_lacks_memory_is_tried_again_once_all_is_given_back(played, words):
    made = []
    Graph.left[:] = [words]
    assert prepare("cudagraph", [lambda: made.append(1)]) is not None
    assert made == [1, 1]
    # The failed graph is gone by then: what it had allocated is given back, too.
    assert played == [[None]]


def test_a_capture_that_lacks_memory_again_says_so(played):
    Graph.left[:] = ["CUDA out of memory"] * 2
    with pytest.raises(RuntimeError, match="out of memory"):
        prepare("cudagraph", [lambda: None])
    assert len(played) == 1


def test_a_capture_that_fails_otherwise_is_not_tried_again(played):
    Graph.left[:] = ["operation not permitted when stream is capturing"]
    with pytest.raises(RuntimeError, match="not permitted"):
        prepare("cudagraph", [lambda: None])
    assert (played, Graph.left) == ([], [])
