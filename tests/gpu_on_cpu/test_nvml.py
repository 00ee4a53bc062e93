"""What is asked of NVML and what a row says of it, with a GPU that is played."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvexp.gpu import nvml as machine
from kvexp.gpu.nvml import Look, Machine, columns
from kvexp.measurement import MACHINE

UUID = "GPU-1"
CALM = Look(1980, 3201, 40, 500.0, 70 << 30, 1, 0, {"power": 0, "thermal": 0})


class NVMLError(Exception):
    pass


class Nvml:
    """NVML with one GPU; `answers` by function, where a missing one is not supported."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1

    def __init__(self, **answers):
        self.answers = answers

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def ask(*arguments):
            answer = self.answers.get(name, NVMLError("not supported"))
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return ask


def played(monkeypatch, **answers):
    nvml = Nvml(nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}", **answers)
    monkeypatch.setattr(machine, "_nvml", lambda: nvml)
    return Machine(UUID)


def test_a_look_has_what_nvml_says(monkeypatch):
    clocks = {1: 1980, 2: 3201}
    gpu = played(
        monkeypatch,
        nvmlDeviceGetClockInfo=lambda handle, clock: clocks[clock],
        nvmlDeviceGetTemperature=40,
        nvmlDeviceGetPowerUsage=512_345,
        nvmlDeviceGetMemoryInfo=SimpleNamespace(used=70 << 30),
        nvmlDeviceGetComputeRunningProcesses=["this", "another"],
        nvmlDeviceGetCurrentClocksEventReasons=0x4,
        nvmlDeviceGetViolationStatus=lambda handle, policy: SimpleNamespace(violationTime=policy + 7),
    )
    assert gpu.look() == Look(1980, 3201, 40, 512.345, 70 << 30, 2, 0x4, {"power": 7, "thermal": 8})


def test_what_a_gpu_does_not_say_is_none(monkeypatch):
    gpu = played(monkeypatch, nvmlDeviceGetTemperature=40)
    assert gpu.look() == Look(None, None, 40, None, None, None, None, {"power": None, "thermal": None})


def test_a_driver_that_calls_reasons_by_their_older_name_is_understood(monkeypatch):
    gpu = played(monkeypatch, nvmlDeviceGetCurrentClocksThrottleReasons=0x20)
    assert gpu.look().reasons == 0x20


def test_a_list_of_processes_without_this_one_says_nothing(monkeypatch):
    assert played(monkeypatch, nvmlDeviceGetComputeRunningProcesses=[]).look().processes is None


@pytest.mark.parametrize("uuid", [None, "GPU-2"])
def test_a_gpu_that_nvml_does_not_know_is_not_looked_at(monkeypatch, uuid):
    monkeypatch.setattr(machine, "_nvml", Nvml)
    assert Machine(uuid).look() is None


def test_without_nvml_nobody_looks(monkeypatch):
    monkeypatch.setattr(machine, "_nvml", lambda: None)
    assert Machine(UUID).look() is None


class TestARow:
    def test_has_every_column_of_two_looks(self):
        found = columns(CALM, replace(CALM, temperature_c=55))
        assert tuple(found) == MACHINE
        assert (found["temperature_c"], found["throttled"], found["other_processes"]) == (55, "", 0)

    def test_names_what_held_clocks_down_at_either_look(self):
        found = columns(replace(CALM, reasons=0x4 | 0x1), replace(CALM, reasons=0x40))
        assert found["throttled"] == "sw_power_cap, hw_thermal"

    def test_names_what_held_clocks_down_in_between(self):
        found = columns(CALM, replace(CALM, held_ns={"power": 5, "thermal": 0}))
        assert found["throttled"] == "power"

    def test_knows_that_idling_and_chosen_clocks_are_no_throttling(self):
        assert columns(replace(CALM, reasons=0x1 | 0x2 | 0x10 | 0x100), CALM)["throttled"] == ""

    def test_does_not_say_that_nothing_throttled_where_nothing_is_known(self):
        unknown = replace(CALM, reasons=None, held_ns={"power": None, "thermal": None})
        assert columns(unknown, unknown)["throttled"] is None

    def test_counts_the_others_on_the_gpu(self):
        assert columns(CALM, replace(CALM, processes=3))["other_processes"] == 2
        unknown = replace(CALM, processes=None)
        assert columns(unknown, unknown)["other_processes"] is None

    def test_without_a_look_has_none(self):
        assert columns(None, CALM) == columns(CALM, None) == {}
