"""The copy engines' transfers without a GPU: the copies that they are given, made by the host, are right."""

import ctypes
from itertools import cycle

import pytest
import torch

from kvexp.bench import run_curve
from kvexp.errors import Unsupported
from kvexp.gpu import copy_engine, far_memory
from kvexp.impl import Refreshing
from kvexp.impl import copy_engine as engines
from kvexp.impl.cuda import staged
from kvexp.impl.torch import Torch
from kvexp.layout.pieces import join_neighbours
from tests.helpers import compose, tiny_curve

LAYOUTS = [name for name in compose.layouts() if name != "head_major"]
RANKS = [(1, 2), (2, 1), (1, 1)]


class HostBatch:
    """A batch of copies that the host makes; see `copy_engine.Batch`."""

    made = 0

    def __init__(self, device):
        pass

    def set_copies(self, source, to, num_bytes):
        self.copies = list(zip(to.tolist(), source.tolist(), num_bytes.tolist(), strict=True))

    def submit(self):
        HostBatch.made = len(self.copies)
        for copy in self.copies:
            ctypes.memmove(*copy)


class HostRectangles:
    """Rectangles that the host copies; see `copy_engine.Rectangles`."""

    def __init__(self, device, row_bytes, rows, source_step, step):
        self.row_bytes, self.rows, self.steps = row_bytes, rows, (step, source_step)

    def set_copies(self, source, to):
        self.copies = list(zip(to.tolist(), source.tolist(), strict=True))

    def submit(self):
        for to, source in self.copies:
            for row in range(self.rows):
                step, source_step = self.steps
                ctypes.memmove(to + row * step, source + row * source_step, self.row_bytes)


@pytest.fixture
def on_host(monkeypatch):
    """Let the host do what copy engines and the CUDA kernel would."""
    monkeypatch.setattr(copy_engine, "Batch", HostBatch)
    monkeypatch.setattr(copy_engine, "Rectangles", HostRectangles)
    monkeypatch.setattr(engines.CopyEngine, "__init__", lambda self, device: Refreshing.__init__(self))
    monkeypatch.setattr(staged, "Cuda", Torch)
    monkeypatch.setattr(far_memory, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def measure(impl, **chosen):
    """Verify a transfer of some points."""
    made = tiny_curve.curve(op="transfer", impl=impl, timer="none", **chosen)
    return list(run_curve.run(made, {}))


@pytest.mark.parametrize("impl", compose.COPY_ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("on_host")
def test_their_copies_are_the_law_s(impl, layout):
    for (tp_from, tp_to), slots in zip(RANKS, cycle(["random", "contiguous"]), strict=False):
        sizes = {"num_layers": 3, "num_heads": 4, "num_tokens": (1, 40), "slots": slots}
        points = measure(impl, layout=layout, tp_from=tp_from, tp_to=tp_to, **sizes)
        assert [(point.status, point.reason) for point in points] == [
            ("verified", "timer=none: not timed")
        ] * 2


@pytest.mark.parametrize("impl", compose.COPY_ENGINES)
@pytest.mark.usefixtures("on_host")
def test_one_that_keeps_the_numbers_of_its_binding_is_found(impl, monkeypatch):
    monkeypatch.setattr(Refreshing, "refresh", lambda self: None)
    for point in measure(impl, num_tokens=(40,)):
        assert point.status == "incorrect"
        assert point.reason.startswith("the call keeps what it saw when it was bound")


@pytest.mark.usefixtures("on_host")
def test_staged_blocks_in_a_row_are_one_copy():
    """In NHD a block has all layers and both planes, and the destination's has no other heads."""
    sizes = {"num_layers": 3, "num_blocks": 8, "num_heads": 4, "num_tokens": (32,), "slots": "contiguous"}
    (point,) = measure("staged", layout="NHD", **sizes)
    assert point.status == "verified"
    assert HostBatch.made == 1
    (point,) = measure("batch", layout="NHD", **sizes)
    assert HostBatch.made == 3 * 2 * 32


def test_only_what_follows_in_both_is_joined():
    source, to = torch.tensor([[0, 8, 16, 64, 72], [100, 108, 124, 132, 140]]).numpy()
    joined = join_neighbours(source, to, 8)
    assert [each.tolist() for each in joined] == [[0, 16, 64], [100, 124, 132], [16, 8, 16]]


def test_a_cpu_has_none():
    for impl in compose.COPY_ENGINES:
        (point,) = measure(impl, num_tokens=(1,))
        assert point.status == "skipped"
        assert "NVIDIA GPU" in point.reason


def test_a_capture_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(Unsupported, match=r"would keep those of its capture; take mode=no_graph$"):
        copy_engine.check_not_captured()
