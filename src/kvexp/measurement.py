"""Define Measurement, the outcome of one point, and its row, the only schema of kvexp."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

from kvexp.case import Case
from kvexp.column import INT64, Column, Flag, Name, Positive, Real, Text, Time, Whole, Word, columns_of

SCHEMA = 1

Row = Mapping[str, Any]
"""A row as `Measurement.row` makes it or as it was read from a file, perhaps with further columns."""

Status = Literal["ok", "verified", "skipped", "incorrect", "failed"]
STATUSES: tuple[Status, ...] = ("ok", "verified", "skipped", "incorrect", "failed")


def is_right(status: str) -> bool:
    """Return whether a point with this status wrote the right bytes, timed or not."""
    return status in ("ok", "verified")


def is_wrong(status: str) -> bool:
    """Return whether a point with this status needs attention."""
    return status in ("incorrect", "failed")


_Name = partial(Name, optional=True)
_Count = partial(Whole, least=0, most=INT64, optional=True)
_Seconds = partial(Real, unit="s", least=0, optional=True)
_Latency = partial(Positive, unit="µs", metric=True, least=1e-9)
_Metric = partial(Real, metric=True, least=0)

SECONDS: dict[str, Column] = {
    "curve_setup_s": _Seconds("The set-up that all points of the curve share: allocation, inputs, poison."),
    "setup_s": _Seconds("The point's own set-up: tensors, compilation, capture."),
    "verify_s": _Seconds("The checks of the point."),
    "timing_s": _Seconds("The samples of the point."),
    "ceiling_s": _Seconds("The copy and the empty kernel that the point is compared with."),
}
"""The columns about where the time went; None for a part that was not reached."""

MACHINE: dict[str, Column] = {
    "sm_clock_mhz": _Count("Clock of the multiprocessors right after the samples.", "MHz"),
    "memory_clock_mhz": _Count("Clock of the memory then.", "MHz"),
    "temperature_c": Whole("Temperature of the GPU then.", "°C", least=-273, optional=True),
    "power_w": Real("Power of the GPU then.", "W", least=0, optional=True),
    "memory_used_bytes": _Count("Memory that all processes used then.", "bytes"),
    "other_processes": _Count("How many other processes computed on the GPU."),
    "throttled": _Name("What limited its clocks before, during or after the samples; empty for nothing."),
}
"""The columns about the GPU while the point was timed; None where it was not read or is not reported."""

ENVIRONMENT: dict[str, Column] = {
    "device_name": _Name("The GPU's name, or the CPU's."),
    "device_uuid": _Name("The GPU's UUID, which distinguishes equal GPUs."),
    "compute_capability": _Name("The GPU's, for example `9.0`."),
    "sm_count": _Count("Multiprocessors of the GPU."),
    "l2_bytes": _Count("The GPU's L2 cache.", "bytes"),
    "device_memory_bytes": _Count("The GPU's memory; for a CPU the machine's.", "bytes"),
    "driver": _Name("Version of the NVIDIA driver."),
    "cuda": _Name("Version of CUDA that torch was built with."),
    "torch": _Name("Version."),
    "triton": _Name("Version."),
    "cuda_core": _Name("Version, of the package that launches our CUDA kernels."),
    "python": _Name("Version."),
    "kvexp": _Name("Version."),
    "source_hash": _Name("Hash of kvexp's sources and options, the same wherever they are installed."),
    "git_commit": _Name("Commit of the checkout that kvexp runs from."),
    "git_dirty": Flag("Whether files of that commit were changed in the checkout.", optional=True),
    "host": _Name("The machine's name."),
    "cpu": _Name("The CPU's name."),
    "cpu_threads": _Count("Threads that torch computes with on the CPU."),
}
"""The columns about the machine and the software; None where something does not apply or is unknown."""

_RECORD: dict[str, Column] = {
    "impl_hash": _Name("Hash of the implementation's sources: a changed kernel is another one."),
    "schema": Whole("Version of the columns; increased when one is removed or changes its meaning."),
    "curve": _Name("Name of the curve in its sweep: what differs there; no part of what was measured."),
    "repetition": Whole("Which of the processes that measured the curve, from 1 on; only with `repeat=`."),
}
"""The columns that a sweep adds to a measurement."""


@dataclass(frozen=True)
class Statistics:
    """The latency of one call over its samples."""

    latency_us: Annotated[float, _Latency("Median.")]
    latency_us_low: Annotated[
        float | None, _Latency("Lower end of the median's 95 % interval; None of fewer than 6 samples.")
    ]
    latency_us_high: Annotated[float | None, _Latency("Upper end.")]
    latency_us_p20: Annotated[float, _Latency("20th percentile.")]
    latency_us_p80: Annotated[float, _Latency("80th percentile.")]
    latency_us_min: Annotated[float, Real("Smallest sample.", "µs", metric=True)]
    latency_us_mean: Annotated[float, Real("Mean.", "µs", metric=True)]
    latency_us_std: Annotated[float, _Metric("Standard deviation of the samples (ddof 1).", "µs")]
    samples: Annotated[int, Whole("How many samples.")]


@dataclass(frozen=True)
class Measurement:
    """The outcome of one case.

    Attributes:
        case: What was measured.
        statistics: The latency; only `ok` has one.
        samples_us: The raw samples, which are written beside the row, to samples.jsonl.
        seconds: Those columns of SECONDS that were reached.
        machine: The columns of MACHINE.
        environment: The columns of ENVIRONMENT, read in the measuring process, and further ones.
        traceback: Of the error behind a `failed` point, where one was raised; written beside the row.
    """

    case: Case
    status: Annotated[
        Status,
        Word(
            "`ok` (right and timed), `verified` (right, not timed), `skipped` (this machine or this "
            "combination cannot), `incorrect` (wrong bytes) or `failed` (an error).",
            words=STATUSES,
        ),
    ]
    reason: Annotated[str, Text("One sentence; empty for `ok` alone.")] = ""
    statistics: Statistics | None = None
    gb_per_s: Annotated[
        float | None, _Metric("Declared bytes over the median latency, in 10^9 bytes a second.", "GB/s")
    ] = field(default=None, init=False)
    host_us: Annotated[
        float | None, _Metric("The host's time for one eager call, in `no_graph` mode on a GPU.", "µs")
    ] = None
    copy_us: Annotated[
        float | None, _Latency("The time of a copy kernel that reads and writes as many bytes.")
    ] = None
    copy_fraction: Annotated[
        float | None,
        Positive("The copy's time over the call's; 1 is the speed of a plain copy.", metric=True),
    ] = field(default=None, init=False)
    empty_kernel_us: Annotated[
        float | None, _Latency("An empty kernel's time, of the curve.", metric=False)
    ] = None
    bytes_moved: Annotated[int | None, _Count("What one call must read and write at least.", "bytes")] = None
    pieces: Annotated[
        int | None, Whole("Of a transfer: contiguous pieces that a call copies.", metric=True, most=INT64)
    ] = None
    piece_bytes: Annotated[int | None, _Count("Of a transfer: the size of a piece.", "bytes")] = None
    replicas: Annotated[
        int | None, Whole("Calls in the timed series; in the long one, where a short series is subtracted.")
    ] = None
    cache_state: Annotated[
        str | None, Name("`cold`: each call writes slots outside the L2; `hot`: all the same; else `warm`.")
    ] = None
    inputs_state: Annotated[
        str | None, Name("`hot`: calls share all but a few rows; `cold`: each reads rows outside the L2.")
    ] = None
    l2_persisting_bytes: Annotated[
        int | None,
        _Count("L2 that the implementation set aside for persisting lines; it is timed without.", "bytes"),
    ] = None
    contract: Annotated[
        str | None, Name("`full`, or which clauses do not hold or are refused; None where not tested.")
    ] = None
    started_at: Annotated[str, Time("When the point was begun, ISO 8601 with the UTC offset.")] = ""
    samples_us: tuple[float, ...] = field(default=(), repr=False)
    machine: dict[str, Any] = field(default_factory=dict, repr=False)
    seconds: dict[str, float] = field(default_factory=dict, repr=False)
    environment: dict[str, Any] = field(default_factory=dict, repr=False)
    traceback: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.statistics is not None):
            raise ValueError(f"status {self.status!r} and a latency exclude each other")
        if (self.status == "ok") != (self.reason == ""):
            raise ValueError(f"status {self.status!r} with the reason {self.reason!r}")
        if self.statistics and self.bytes_moved is not None:
            object.__setattr__(self, "gb_per_s", self.bytes_moved / self.statistics.latency_us / 1e3)
        if self.statistics and self.copy_us is not None:
            object.__setattr__(self, "copy_fraction", self.copy_us / self.statistics.latency_us)

    def row(self) -> dict[str, Any]:
        """Return the flat row: the outcome, the case, the environment, the schema's version."""
        own = {name: getattr(self, name) for name in _OWN}
        own["reason"] = self.reason.encode(errors="replace").decode()  # perhaps the name of a file
        latency = asdict(self.statistics) if self.statistics else {}
        case, about = self.case.columns(), self.seconds | self.machine | self.environment
        return {**dict.fromkeys(_ROW), **own, **latency, **case, **about, "schema": SCHEMA}


_OWN = columns_of(Measurement)
# A row without a latency has none of the statistics.
_LATENCY = {name: replace(column, optional=True) for name, column in columns_of(Statistics).items()}
_OUTCOME = {name: _OWN[name] for name in ("status", "reason")} | _LATENCY | _OWN
_ROW = _OUTCOME | columns_of(Case) | SECONDS | MACHINE | ENVIRONMENT
COLUMNS = _ROW | _RECORD
"""Every column that kvexp writes, in the order of a row."""
