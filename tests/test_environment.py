import json

import pytest
import torch

from kvexp import environment
from kvexp.errors import Unsupported
from kvexp.measurement import ENVIRONMENT


@pytest.mark.parametrize("device", ["cpu", None])
def test_every_column_is_read_in_its_order(device):
    assert tuple(environment.read(device)) == ENVIRONMENT


def test_a_cpu_has_the_columns_of_a_gpu():
    found = environment.read("cpu")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    gpu_s = ("device_uuid", "compute_capability", "sm_count", "l2_bytes", "driver")
    assert [found[column] for column in gpu_s] == [None] * 5
    assert found["torch"] == torch.__version__
    assert found["device_name"] == found["cpu"]
    assert found["device_memory_bytes"] > 0


def test_cpu_is_the_cpu():
    assert environment.resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("count", "requested", "device"),
    [(0, "auto", "cpu"), (1, "auto", "cuda:0"), (2, "cuda", "cuda:0"), (2, "cuda:1", "cuda:1")],
)
def test_a_device_is_resolved_by_what_is_there(monkeypatch, count, requested, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert environment.resolve_device(requested) == device


@pytest.mark.parametrize(
    ("count", "requested", "has"),
    [(0, "cuda", "no GPU that torch can use"), (1, "cuda:1", "1 GPU"), (2, "cuda:2", "2 GPUs")],
)
def test_a_device_that_is_not_there_is_named_beside_what_is(monkeypatch, count, requested, has):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(Unsupported) as raised:
        environment.resolve_device(requested)
    assert str(raised.value) == f"device={requested} was asked for and this machine has {has}"
