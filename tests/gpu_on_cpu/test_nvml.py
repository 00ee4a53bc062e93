"""What is read from NVML and what a row says of it, with a fake NVML."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvexp.gpu import nvml
from kvexp.gpu.nvml import GpuMonitor, GpuState, make_columns
from kvexp.measurement import MACHINE

UUID = "GPU-1"
READ = tuple(MACHINE)[:5]
"""The columns that one reading gives."""


def state(readings, processes, reasons, **limited_ns):
    return GpuState(dict(zip(READ, readings, strict=True)), processes, reasons, limited_ns)


CALM = state((1980, 3201, 40, 500.0, 70 << 30), 1, 0, power=0, thermal=0)


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


def make_monitor(monkeypatch, **answers):
    fake = Nvml(nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}", **answers)
    monkeypatch.setattr(nvml, "_find_nvml", lambda: fake)
    return GpuMonitor(UUID)


def test_a_reading_has_what_nvml_reports(monkeypatch):
    clocks = {1: 1980, 2: 3201}
    gpu = make_monitor(
        monkeypatch,
        nvmlDeviceGetClockInfo=lambda handle, clock: clocks[clock],
        nvmlDeviceGetTemperature=40,
        nvmlDeviceGetPowerUsage=512_345,
        nvmlDeviceGetMemoryInfo=SimpleNamespace(used=70 << 30),
        nvmlDeviceGetComputeRunningProcesses=["this", "another"],
        nvmlDeviceGetCurrentClocksEventReasons=0x4,
        nvmlDeviceGetViolationStatus=lambda handle, policy: SimpleNamespace(violationTime=policy + 7),
    )
    assert gpu.read() == state((1980, 3201, 40, 512.345, 70 << 30), 2, 0x4, power=7, thermal=8)


def test_what_nvml_does_not_report_is_none(monkeypatch):
    gpu = make_monitor(monkeypatch, nvmlDeviceGetTemperature=40)
    assert gpu.read() == state((None, None, 40, None, None), None, None, power=None, thermal=None)


def test_an_older_driver_s_name_for_the_reasons_is_understood(monkeypatch):
    gpu = make_monitor(monkeypatch, nvmlDeviceGetCurrentClocksThrottleReasons=0x20)
    assert gpu.read().reasons == 0x20


def test_an_empty_list_of_processes_is_unknown(monkeypatch):
    assert make_monitor(monkeypatch, nvmlDeviceGetComputeRunningProcesses=[]).read().processes is None


@pytest.mark.parametrize("uuid", [None, "GPU-2"])
def test_a_gpu_that_nvml_does_not_know_is_not_read(monkeypatch, uuid):
    monkeypatch.setattr(nvml, "_find_nvml", Nvml)
    assert GpuMonitor(uuid).read() is None


def test_without_nvml_nothing_is_read(monkeypatch):
    monkeypatch.setattr(nvml, "_find_nvml", lambda: None)
    assert GpuMonitor(UUID).read() is None


class TestARow:
    def test_has_every_column(self):
        found = make_columns(CALM, replace(CALM, columns={**CALM.columns, "temperature_c": 55}))
        assert list(found) == list(MACHINE)
        assert (found["temperature_c"], found["throttled"], found["other_processes"]) == (55, "", 0)

    def test_names_what_lowered_clocks_at_either_reading(self):
        found = make_columns(replace(CALM, reasons=0x4 | 0x1), replace(CALM, reasons=0x40))
        assert found["throttled"] == "sw_power_cap, hw_thermal"

    def test_names_what_lowered_clocks_in_between(self):
        found = make_columns(CALM, replace(CALM, limited_ns={"power": 5, "thermal": 0}))
        assert found["throttled"] == "power"

    def test_does_not_count_idling_and_chosen_clocks_as_throttling(self):
        assert make_columns(replace(CALM, reasons=0x1 | 0x2 | 0x10 | 0x100), CALM)["throttled"] == ""

    def test_has_none_where_throttling_is_unknown(self):
        unknown = replace(CALM, reasons=None, limited_ns={"power": None, "thermal": None})
        assert make_columns(unknown, unknown)["throttled"] is None

    def test_counts_the_others_on_the_gpu(self):
        assert make_columns(CALM, replace(CALM, processes=3))["other_processes"] == 2
        unknown = replace(CALM, processes=None)
        assert make_columns(unknown, unknown)["other_processes"] is None

    def test_is_empty_without_both_readings(self):
        assert make_columns(None, CALM) == make_columns(CALM, None) == {}
