"""Define Measurement, the outcome of one point, and its row, the only schema of kvexp."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kvexp.case import Case

SCHEMA = 1
"""Version of the row's columns; increased when a column changes its meaning or is removed."""

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


ENVIRONMENT = (
    "device_name",
    "device_uuid",
    "compute_capability",
    "sm_count",
    "l2_bytes",
    "device_memory_bytes",
    "driver",
    "cuda",
    "torch",
    "triton",
    "cuda_core",
    "python",
    "kvexp",
    "source_hash",
    "git_commit",
    "git_dirty",
    "host",
    "cpu",
    "cpu_threads",
)
"""The columns about the machine and the software; None where something does not apply or is unknown.

Attributes:
    device_name: The GPU's name, or the CPU's.
    device_uuid: The GPU's UUID, which distinguishes equal GPUs.
    compute_capability: The GPU's, for example `9.0`.
    sm_count: Multiprocessors of the GPU.
    l2_bytes: The GPU's L2 cache.
    device_memory_bytes: The GPU's memory; for a CPU the machine's.
    driver: Version of the NVIDIA driver.
    cuda: Version of CUDA that torch was built with.
    torch: Version.
    triton: Version.
    cuda_core: Version, of the package that launches our CUDA kernels.
    python: Version.
    kvexp: Version.
    source_hash: Hash of kvexp's own sources and options, the same wherever they are installed.
    git_commit: Commit of the checkout that kvexp runs from.
    git_dirty: Whether that checkout had changes.
    host: The machine's name.
    cpu: The CPU's name.
    cpu_threads: Threads that torch computes with on the CPU.
"""


MACHINE = (
    "sm_clock_mhz",
    "memory_clock_mhz",
    "temperature_c",
    "power_w",
    "memory_used_bytes",
    "other_processes",
    "throttled",
)
"""The columns about the GPU while the point was timed; None where it was not read or is not reported.

Attributes:
    sm_clock_mhz: Clock of the multiprocessors right after the samples.
    memory_clock_mhz: Clock of the memory then.
    temperature_c: Temperature of the GPU then, in degrees Celsius.
    power_w: Power of the GPU then, in watts.
    memory_used_bytes: Memory that all processes used then.
    other_processes: How many other processes computed on the GPU.
    throttled: What limited its clocks before, during or after the samples; empty when nothing did.
"""


SECONDS = ("curve_setup_s", "setup_s", "verify_s", "timing_s", "ceiling_s")
"""The columns about where the time went, in seconds; None for a part that was not reached.

Attributes:
    curve_setup_s: The set-up that all points of the curve share: allocation, inputs, poison.
    setup_s: The point's own set-up: tensors, compilation, capture.
    verify_s: The checks of the point.
    timing_s: The samples of the point.
    ceiling_s: The copy and the empty kernel that the point is compared with.
"""


@dataclass(frozen=True)
class Statistics:
    """The latency of one call over its samples, in microseconds.

    Attributes:
        latency_us: Median.
        latency_us_low: Lower end of the median's 95 % interval; None of fewer than 6 samples.
        latency_us_high: Upper end.
        latency_us_p20: 20th percentile.
        latency_us_p80: 80th percentile.
        latency_us_min: Smallest sample.
        latency_us_mean: Mean.
        latency_us_std: Standard deviation of the samples (ddof 1).
        samples: How many samples.
    """

    latency_us: float
    latency_us_low: float | None
    latency_us_high: float | None
    latency_us_p20: float
    latency_us_p80: float
    latency_us_min: float
    latency_us_mean: float
    latency_us_std: float
    samples: int


@dataclass(frozen=True)
class Measurement:
    """The outcome of one case.

    Attributes:
        case: What was measured.
        status: `ok` (right and timed), `verified` (right, not timed), `skipped` (this machine or this
            combination cannot), `incorrect` (wrong bytes) or `failed` (an error).
        reason: One sentence; empty for `ok` alone.
        statistics: The latency; only `ok` has one.
        bytes_moved: The bytes that one call must read and write at least.
        replicas: Calls in the timed series; in the long one, where a short series is subtracted.
        cache_state: `cold` when every call of the replay writes slots that are not in the L2, `hot` when all
            write the same, else `warm`.
        inputs_state: `hot` when the calls of the replay read the same keys and values but for a few rows,
            `cold` when each reads some that are not in the L2.
        contract: `full` where every clause of the contract holds, else the clauses that do not hold and those
            that the implementation refuses; None where this size was not checked.
        host_us: The host's time for one eager call, in `no_graph` mode on a GPU.
        copy_us: The time of a copy kernel that reads and writes as many bytes.
        empty_kernel_us: An empty kernel's time.
        started_at: When the point was begun, ISO 8601 with the UTC offset.
        samples_us: The raw samples, which are written beside the row, to samples.jsonl.
        machine: The columns named by MACHINE.
        seconds: The columns named by SECONDS; a part that was not reached is None in the row.
        environment: The columns named by ENVIRONMENT, read in the measuring process.
        traceback: Of the error behind a `failed` point, where one was raised; written beside the row.
    """

    case: Case
    status: Status
    reason: str = ""
    statistics: Statistics | None = None
    bytes_moved: int | None = None
    replicas: int | None = None
    cache_state: str | None = None
    inputs_state: str | None = None
    contract: str | None = None
    host_us: float | None = None
    copy_us: float | None = None
    empty_kernel_us: float | None = None
    started_at: str = ""
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

    @property
    def gb_per_s(self) -> float | None:
        """Declared bytes over the median latency, in 10^9 bytes a second."""
        if self.statistics is None or self.bytes_moved is None:
            return None
        return self.bytes_moved / self.statistics.latency_us / 1e3

    @property
    def copy_fraction(self) -> float | None:
        """The copy kernel's time over the call's; 1 is the speed of a plain copy."""
        if self.statistics is None or self.copy_us is None:
            return None
        return self.copy_us / self.statistics.latency_us

    def row(self) -> dict[str, Any]:
        """Return the flat row: the outcome, the case, the environment, the schema's version."""
        latency = asdict(self.statistics) if self.statistics else dict.fromkeys(_LATENCY)
        return {
            "status": self.status,
            "reason": self.reason,
            **latency,
            "gb_per_s": self.gb_per_s,
            "host_us": self.host_us,
            "copy_us": self.copy_us,
            "copy_fraction": self.copy_fraction,
            "empty_kernel_us": self.empty_kernel_us,
            "bytes_moved": self.bytes_moved,
            "replicas": self.replicas,
            "cache_state": self.cache_state,
            "inputs_state": self.inputs_state,
            "contract": self.contract,
            "started_at": self.started_at,
            **asdict(self.case),
            **dict.fromkeys(SECONDS),
            **self.seconds,
            **dict.fromkeys(MACHINE),
            **self.machine,
            **dict.fromkeys(ENVIRONMENT),
            **self.environment,
            "schema": SCHEMA,
        }


_LATENCY = tuple(Statistics.__dataclass_fields__)
