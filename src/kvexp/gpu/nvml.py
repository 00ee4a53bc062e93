"""The GPU while it measures, asked of NVML: clocks, heat, power, what throttled it, and who else is on it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SLOWED = {
    0x0000000000000004: "sw_power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000020: "sw_thermal",
    0x0000000000000040: "hw_thermal",
    0x0000000000000080: "hw_power_brake",
}
"""NVML's reasons for clocks below what was asked for that make a measurement another one. An idle GPU, clocks
that somebody set, and boost in step with other GPUs are none."""

POLICIES = {"NVML_PERF_POLICY_POWER": "power", "NVML_PERF_POLICY_THERMAL": "thermal"}
"""NVML's counters of the time that a limit held clocks down; they tell of what no look happened to see."""


@dataclass(frozen=True)
class Look:
    """One look at a GPU; None is what it does not say.

    Attributes:
        sm_clock_mhz: Clock of the multiprocessors.
        memory_clock_mhz: Clock of the memory.
        temperature_c: Of the GPU, in degrees Celsius.
        power_w: Drawn now, in watts.
        memory_used_bytes: By all processes.
        processes: That compute on it, this one included.
        reasons: Bits of NVML for why clocks are down.
        held_ns: For each policy, how long it has held clocks down since the driver was loaded.
    """

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    memory_used_bytes: int | None
    processes: int | None
    reasons: int | None
    held_ns: dict[str, int | None]


class Machine:
    """One GPU to look at.

    Args:
        uuid: Its UUID, `GPU-...`; None where there is none.
    """

    def __init__(self, uuid: str | None) -> None:
        self._nvml = _nvml() if uuid else None
        self._handle = _asked(self._nvml, "nvmlDeviceGetHandleByUUID", uuid)

    def look(self) -> Look | None:
        """How it is at this moment; None where NVML does not know it."""
        if self._handle is None:
            return None
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        power = self._ask("nvmlDeviceGetPowerUsage")
        running = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return Look(
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
            memory_clock_mhz=self._ask("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
            temperature_c=self._ask("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
            power_w=None if power is None else power / 1e3,
            memory_used_bytes=None if memory is None else int(memory.used),
            # A container sees none at all, not even this one: that says nothing.
            processes=len(running) if running else None,
            reasons=self._ask("nvmlDeviceGetCurrentClocksEventReasons")
            or self._ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
            held_ns={word: self._held(policy) for policy, word in POLICIES.items()},
        )

    def _held(self, policy: str) -> int | None:
        status = self._ask("nvmlDeviceGetViolationStatus", policy)
        return None if status is None else int(status.violationTime)

    def _ask(self, function: str, *names: str) -> Any:
        constants = (getattr(self._nvml, name) for name in names)
        return _asked(self._nvml, function, self._handle, *constants)


def columns(before: Look | None, after: Look | None) -> dict[str, Any]:
    """The row's columns about the GPU while a point was timed; empty where nobody looked.

    `throttled` names what held clocks down at either look or in between, `""` when nothing did.
    """
    if before is None or after is None:
        return {}
    others = [look.processes - 1 for look in (before, after) if look.processes is not None]
    return {
        "sm_clock_mhz": after.sm_clock_mhz,
        "memory_clock_mhz": after.memory_clock_mhz,
        "temperature_c": after.temperature_c,
        "power_w": after.power_w,
        "memory_used_bytes": after.memory_used_bytes,
        "other_processes": max(others) if others else None,
        "throttled": _throttled(before, after),
    }


def _throttled(before: Look, after: Look) -> str | None:
    known = [look.reasons for look in (before, after) if look.reasons is not None]
    grown = {
        word: later - (before.held_ns[word] or 0)
        for word, later in after.held_ns.items()
        if later is not None and before.held_ns[word] is not None
    }
    if not known and not grown:
        return None
    words = [word for bit, word in SLOWED.items() if any(reasons & bit for reasons in known)]
    words += [word for word, ns in grown.items() if ns > 0]
    return ", ".join(words)


@functools.cache
def _nvml() -> Any:
    """The initialised library; None where it cannot be used."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _asked(nvml: Any, function: str, *arguments: Any) -> Any:
    """What the library answers; None where it has no such function, or no answer for this GPU."""
    ask: Callable[..., Any] | None = getattr(nvml, function, None)
    if ask is None or (arguments and arguments[0] is None):
        return None
    try:
        return ask(*arguments)
    except nvml.NVMLError:
        return None
