"""Read a GPU's state from NVML: clocks, temperature, power, throttling, and other processes on it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvexp.errors import Unsupported

THROTTLE_REASONS = {
    0x0000000000000004: "sw_power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000020: "sw_thermal",
    0x0000000000000040: "hw_thermal",
    0x0000000000000080: "hw_power_brake",
}
"""NVML's clock event reasons that distort a measurement. An idle GPU, clocks set by a user, and boost in step
with other GPUs do not."""

POLICIES = {"NVML_PERF_POLICY_POWER": "power", "NVML_PERF_POLICY_THERMAL": "thermal"}
"""NVML's counters of the time that a limit lowered the clocks; they also count between two readings."""


@dataclass(frozen=True)
class GpuState:
    """One reading of a GPU; None is what NVML does not report.

    Attributes:
        columns: The columns of a row that hold one reading.
        processes: That compute on it, this one included.
        reasons: NVML's bits for why clocks are low.
        limited_ns: For each policy, how long it has lowered clocks since the driver was loaded.
    """

    columns: Mapping[str, Any]
    processes: int | None
    reasons: int | None
    limited_ns: dict[str, int | None]


class GpuMonitor:
    """Reads the state of the GPU of a UUID, `GPU-...`; None stands for a CPU."""

    def __init__(self, uuid: str | None) -> None:
        self._nvml = _find_nvml() if uuid else None
        self._handle = _query(self._nvml, "nvmlDeviceGetHandleByUUID", uuid)

    def read(self) -> GpuState | None:
        """Return the GPU's current state; None where NVML does not know the GPU."""
        if self._handle is None:
            return None
        memory = self._query("nvmlDeviceGetMemoryInfo")
        power = self._query("nvmlDeviceGetPowerUsage")
        running = self._query("nvmlDeviceGetComputeRunningProcesses")
        return GpuState(
            columns={
                "sm_clock_mhz": self._query("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
                "memory_clock_mhz": self._query("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
                "temperature_c": self._query("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
                "power_w": None if power is None else power / 1e3,
                "memory_used_bytes": None if memory is None else int(memory.used),
            },
            # A container sees none, not even this one: then the number is unknown.
            processes=len(running) if running else None,
            reasons=self._query("nvmlDeviceGetCurrentClocksEventReasons")
            or self._query("nvmlDeviceGetCurrentClocksThrottleReasons"),
            limited_ns={word: self._read_limited_ns(policy) for policy, word in POLICIES.items()},
        )

    def _read_limited_ns(self, policy: str) -> int | None:
        status = self._query("nvmlDeviceGetViolationStatus", policy)
        return None if status is None else int(status.violationTime)

    def _query(self, function: str, *names: str) -> Any:
        constants = (getattr(self._nvml, name) for name in names)
        return _query(self._nvml, function, self._handle, *constants)


def make_columns(before: GpuState | None, after: GpuState | None) -> dict[str, Any]:
    """Return the row's columns about the GPU while a point was timed; empty without both readings.

    `throttled` names what lowered the clocks at either reading or in between, `""` when nothing did.
    """
    if before is None or after is None:
        return {}
    others = [state.processes - 1 for state in (before, after) if state.processes is not None]
    return {
        **after.columns,
        "other_processes": max(others) if others else None,
        "throttled": _name_throttling(before, after),
    }


def _name_throttling(before: GpuState, after: GpuState) -> str | None:
    known = [state.reasons for state in (before, after) if state.reasons is not None]
    grown = {
        word: later - (before.limited_ns[word] or 0)
        for word, later in after.limited_ns.items()
        if later is not None and before.limited_ns[word] is not None
    }
    if not known and not grown:
        return None
    words = [word for bit, word in THROTTLE_REASONS.items() if any(reasons & bit for reasons in known)]
    words += [word for word, ns in grown.items() if ns > 0]
    return ", ".join(words)


def load_nvml() -> Any:
    """Import pynvml and initialise NVML.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        Unsupported: There is no usable driver.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Unsupported(f"no NVIDIA driver ({error})") from error
    return pynvml


def list_gpus(visible: str | None = None) -> list[str]:
    """List the UUIDs of this machine's GPUs in nvidia-smi's order.

    `visible` is CUDA_VISIBLE_DEVICES where that is set: numbers or beginnings of UUIDs. As CUDA does, the
    first that is no GPU ends it.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        Unsupported: There is no usable driver, or `visible` names parts of a GPU.
    """
    nvml = load_nvml()
    handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    uuids = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    if visible is None:
        return uuids
    found: list[str] = []
    for name in map(str.strip, visible.split(",")):
        if name.startswith("MIG-"):
            raise Unsupported(f"CUDA_VISIBLE_DEVICES={visible} names a part of a GPU")
        if name.isdecimal():
            named = uuids[int(name) : int(name) + 1]
        else:
            named = [uuid for uuid in uuids if name and uuid.startswith(name)]
        if len(named) != 1 or named[0] in found:
            break
        found += named
    return found


def read_driver_version() -> str | None:
    """Return the driver's version; None where NVML cannot be used."""
    version = _query(_find_nvml(), "nvmlSystemGetDriverVersion")
    return None if version is None else str(version)


@functools.cache
def _find_nvml() -> Any:
    """Return the initialised library; None where it cannot be used."""
    try:
        return load_nvml()
    except (ImportError, Unsupported):
        return None


def _query(nvml: Any, function: str, *arguments: Any) -> Any:
    """Return what NVML answers; None where it lacks the function, or an answer for this GPU."""
    ask: Callable[..., Any] | None = getattr(nvml, function, None)
    if ask is None or (arguments and arguments[0] is None):
        return None
    try:
        return ask(*arguments)
    except nvml.NVMLError:
        return None
