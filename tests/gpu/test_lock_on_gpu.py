"""Two processes measure on one GPU one after the other; the second finds the memory of the first free."""

import pytest
import torch

from kvexp.bench import environment
from kvexp.gpu import lock
from kvexp.sweep.subprocess_worker import Worker
from tests.helpers import compose

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KVEXP_LOCK_DIR", str(tmp_path / "locks"))


def curve():
    sizes = ("workload=quickstart", "workload.num_tokens=[1,16,64]")
    return compose.experiment("impl=cuda", "timer.max_seconds=0.1", *sizes).resolve("cuda:0")


def test_two_processes_measure_one_after_the_other():
    told = []
    with Worker("cuda:0") as first, Worker("cuda:0", 60.0, lambda holder: ends(holder)) as second:
        first.wait()
        second.wait()
        points = first.run(curve())
        found = [next(points)]

        def ends(holder):
            told.append(holder)
            if holder:
                found.extend(points)

        found += second.run(curve())
        assert told == [f"process {first._process.pid}", None]
    assert [row["status"] for row, _ in found] == ["ok"] * 6


def test_the_lock_is_released_when_the_cache_is_free():
    def free():
        return torch.cuda.mem_get_info(0)[0]

    sizes = curve().workload
    cache_bytes = sizes.num_blocks * sizes.block_size * sizes.num_heads * 2 * sizes.head_size * 2
    with Worker("cuda:0") as first:
        first.wait()
        points = first.run(curve())
        next(points)
        before = free()
        told = []

        def ends(holder):
            told.append(holder)
            if holder:
                list(points)

        with lock.gpu_lock(environment.read("cuda:0")["device_uuid"], ends):
            assert free() - before >= cache_bytes
    assert told[-1] is None
