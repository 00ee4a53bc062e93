"""The measuring process before it measures: what it is asked for, and what it does beside torch's import."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from kvexp.bench import child
from kvexp.errors import WorkerDied
from kvexp.gpu import lock
from kvexp.sweep.subprocess_worker import Worker


class Driver:
    """libcuda as far as a context needs it, with two GPUs."""

    def __init__(self, initialised=0):
        self.initialised = initialised
        self.retained = []

    def cuInit(self, flags):  # the driver's names
        return self.initialised

    def cuDeviceGet(self, device, ordinal):
        if self.initialised or ordinal > 1:
            return 101
        device._obj.value = 70 + ordinal
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        self.retained.append(device.value)
        return 0


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What a process does that hears a line: the device as it was heard, and the GPUs that got a context."""
    monkeypatch.setenv("KVEXP_LOCK_DIR", str(tmp_path / "locks"))

    def hears(line, driver):
        def load(name):
            assert name == "libcuda.so.1"
            if driver is None:
                raise OSError(name)
            return driver

        monkeypatch.setattr(sys, "stdin", io.StringIO(line))
        monkeypatch.setattr(child.ctypes, "CDLL", load)
        thread = child._DeviceReader()
        thread.start()
        thread.join()
        return thread.device, driver.retained if driver else []

    return hears


@pytest.mark.parametrize(("device", "gpu"), [("auto", 70), ("cuda", 70), ("cuda:0", 70), ("cuda:1", 71)])
def test_a_gpu_has_its_context_while_torch_is_imported(asked, device, gpu):
    assert asked(f"{device}\n", Driver()) == (device, [gpu])


@pytest.mark.parametrize("device", ["cpu", ""])
def test_a_cpu_or_a_parent_that_is_gone_wakes_no_driver(asked, device):
    driver = Driver()
    assert asked(f"{device}\n" if device else "", driver) == (device, [])


@pytest.mark.parametrize(
    ("device", "driver"), [("auto", None), ("auto", Driver(initialised=100)), ("cuda:2", Driver())]
)
def test_what_is_not_there_has_no_context_and_torch_says_why(asked, device, driver):
    assert asked(f"{device}\n", driver) == (device, [])


def test_beside_a_process_that_measures_no_context_is_made(asked):
    with lock.gpu_lock("GPU-70"):
        assert asked("cuda:0\n", Driver()) == ("cuda:0", [])
    assert asked("cuda:0\n", Driver()) == ("cuda:0", [70])


def test_a_process_whose_parent_is_gone_ends_without_a_word():
    ended = subprocess.run(
        [sys.executable, "-m", "kvexp.bench.child"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_a_torch_that_cannot_be_imported_is_said(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13 is not there')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    with (
        Worker("cpu") as worker,
        pytest.raises(WorkerDied, match=r"(?s)exited with 1.*libcudart\.so\.13 is not there"),
    ):
        worker.wait()
