"""Room: whether a curve's tensors fit, and what would."""

import math
from types import SimpleNamespace

import psutil
import pytest
import torch

from kvexp.errors import Unsupported
from kvexp.workload import device_memory
from tests.helpers import compose, tiny_curve


def refusal(monkeypatch, free, **chosen):
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: free)
    with pytest.raises(Unsupported) as raised, tiny_curve.memory(**chosen):
        pass
    return str(raised.value)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("layout", compose.layouts())
def test_cache_inputs_slots_and_working_memory_are_needed(monkeypatch, layout, num_layers):
    rows = num_layers * 1000 * 16 * 2 * (32 + 32) * 2
    slots = 1000 * 16 * 32
    # One row more than tokens: the second set of inputs begins there.
    needed = rows + slots + 51 * 2 * (32 + 32) * 2 + device_memory.WORKING_BYTES
    chosen = {"num_blocks": 1000, "layout": layout, "num_layers": num_layers}
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: needed)
    with tiny_curve.memory(**chosen):
        pass
    assert refusal(monkeypatch, needed - 1, **chosen) == (
        f"the cache of 1000 blocks and its inputs need {needed} bytes and cpu has {needed - 1} free: "
        "workload.num_blocks=999 would fit"
    )


@pytest.mark.parametrize("rows", compose.words("rows"))
def test_the_inputs_take_the_bytes_that_were_checked(monkeypatch, rows):
    chosen = {"rows": rows, "num_query_heads": 7, "extra_tokens": 9}
    with tiny_curve.memory(**chosen) as held:
        input_bytes = held.inputs.numel() * held.inputs.itemsize
    needed = 8 * (16 * 2 * (32 + 32) * 2 + 16 * 32) + input_bytes + device_memory.WORKING_BYTES
    assert f"need {needed} bytes" in refusal(monkeypatch, 0, **chosen)


def test_no_number_is_advised_if_not_even_one_block_fits(monkeypatch):
    assert refusal(monkeypatch, device_memory.WORKING_BYTES).endswith(": no number of blocks would fit")


def test_free_bytes_are_those_that_the_machine_has():
    assert 0 < device_memory.free_bytes("cpu") <= psutil.virtual_memory().total


@pytest.mark.parametrize(("more", "asked"), [(0, 0), (1, 1)])
def test_unused_memory_of_torch_is_returned_beyond_the_working_memory(monkeypatch, more, asked):
    given = []
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 7 + device_memory.WORKING_BYTES + more)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 7)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(1))
    device_memory.trim()
    assert len(given) == asked


@pytest.mark.parametrize(
    ("limit", "stat", "free"),
    [
        ("4000", "anon 1000\ninactive_file 1500", 2500),  # files that were read can go
        ("max", "inactive_file 0", math.inf),
        ("4000", "anon 1000", 1000),
    ],
)
def test_a_containers_limit_counts_without_the_files_it_has_read(monkeypatch, tmp_path, limit, stat, free):
    for name, text in (("max", limit), ("current", "3000"), ("stat", stat)):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    monkeypatch.setattr(device_memory, "CGROUP", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1 << 40))
    assert device_memory.free_bytes("cpu") == min(free, 1 << 40)
