"""Define Measurement, the outcome of one point, and its row, the only schema of kvexp."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal, TypedDict

from kvexp.case import Case
from kvexp.column import (
    ANY,
    INT64,
    SMALLEST,
    Column,
    Flag,
    Positive,
    Real,
    Text,
    Time,
    Whole,
    Word,
    columns_of,
)

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


_Latency = partial(Positive, unit="µs", metric=True, least=SMALLEST)
_Seconds = partial(Real, unit="s", least=0)
_Count = partial(Whole, least=0, most=INT64)


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
    latency_us_std: Annotated[
        float, Real("Standard deviation of the samples (ddof 1).", "µs", metric=True, least=0)
    ]
    samples: Annotated[int, Whole("How many samples.")]


class Seconds(TypedDict, total=False):
    """Where the time went; None for a part that was not reached."""

    curve_setup_s: Annotated[
        float | None, _Seconds("The set-up that all points of the curve share: allocation, inputs, poison.")
    ]
    setup_s: Annotated[float | None, _Seconds("The point's own set-up: tensors, compilation, capture.")]
    verify_s: Annotated[float | None, _Seconds("The checks of the point.")]
    timing_s: Annotated[float | None, _Seconds("The samples of the point.")]
    ceiling_s: Annotated[
        float | None, _Seconds("The copy and the empty kernel that the point is compared with.")
    ]


class Machine(TypedDict, total=False):
    """The GPU while the point was timed; None where it was not read or is not reported."""

    sm_clock_mhz: Annotated[
        int | None, _Count("Clock of the multiprocessors right after the samples.", "MHz")
    ]
    memory_clock_mhz: Annotated[int | None, _Count("Clock of the memory then.", "MHz")]
    temperature_c: Annotated[int | None, Whole("Temperature of the GPU then.", "°C", least=-273)]
    power_w: Annotated[float | None, Real("Power of the GPU then.", "W", least=0)]
    memory_used_bytes: Annotated[int | None, _Count("Memory that all processes used then.", "bytes")]
    other_processes: Annotated[int | None, _Count("How many other processes computed on the GPU.")]
    throttled: Annotated[
        str | None,
        Text("What limited its clocks before, during or after the samples; empty when nothing did."),
    ]


class Environment(TypedDict, total=False):
    """The machine and the software; None where something does not apply or is unknown."""

    device_name: Annotated[str | None, Text("The GPU's name, or the CPU's.")]
    device_uuid: Annotated[str | None, Text("The GPU's UUID, which distinguishes equal GPUs.")]
    compute_capability: Annotated[str | None, Text("The GPU's, for example `9.0`.")]
    sm_count: Annotated[int | None, _Count("Multiprocessors of the GPU.")]
    l2_bytes: Annotated[int | None, _Count("The GPU's L2 cache.", "bytes")]
    device_memory_bytes: Annotated[int | None, _Count("The GPU's memory; for a CPU the machine's.", "bytes")]
    driver: Annotated[str | None, Text("Version of the NVIDIA driver.")]
    cuda: Annotated[str | None, Text("Version of CUDA that torch was built with.")]
    torch: Annotated[str | None, Text("Version.")]
    triton: Annotated[str | None, Text("Version.")]
    cuda_core: Annotated[str | None, Text("Version, of the package that launches our CUDA kernels.")]
    python: Annotated[str | None, Text("Version.")]
    kvexp: Annotated[str | None, Text("Version.")]
    source_hash: Annotated[
        str | None,
        Text("Hash of kvexp's own sources and options, the same wherever they are installed."),
    ]
    git_commit: Annotated[str | None, Text("Commit of the checkout that kvexp runs from.")]
    git_dirty: Annotated[bool | None, Flag("Whether that checkout had changes.")]
    host: Annotated[str | None, Text("The machine's name.")]
    cpu: Annotated[str | None, Text("The CPU's name.")]
    cpu_threads: Annotated[int | None, _Count("Threads that torch computes with on the CPU.")]


class Record(TypedDict, total=False):
    """What a sweep adds to a measurement when it writes the row."""

    impl_hash: Annotated[
        str | None, Text("Hash of the implementation's sources: a changed kernel is another one.")
    ]
    schema: Annotated[
        int,
        Whole("Version of the row's columns; increased when a column changes its meaning or is removed."),
    ]
    repetition: Annotated[
        int,
        Whole("Which of the processes that measured the curve, from 1 on; there with `repeat=` alone."),
    ]


@dataclass(frozen=True)
class Measurement:
    """The outcome of one case.

    Attributes:
        case: What was measured.
        statistics: The latency; only `ok` has one.
        samples_us: The raw samples, which are written beside the row, to samples.jsonl.
        seconds: The columns of Seconds that were reached.
        machine: The columns of Machine.
        environment: The columns of Environment, read in the measuring process, and further ones.
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
        float | None,
        Real("Declared bytes over the median latency, in 10^9 bytes a second.", "GB/s", metric=True, least=0),
    ] = field(default=None, init=False)
    host_us: Annotated[
        float | None,
        Real("The host's time for one eager call, in `no_graph` mode on a GPU.", "µs", metric=True, least=0),
    ] = None
    copy_us: Annotated[
        float | None, _Latency("The time of a copy kernel that reads and writes as many bytes.")
    ] = None
    copy_fraction: Annotated[
        float | None,
        Real("The copy kernel's time over the call's; 1 is the speed of a plain copy.", metric=True, least=0),
    ] = field(default=None, init=False)
    empty_kernel_us: Annotated[float | None, _Latency("An empty kernel's time.")] = None
    bytes_moved: Annotated[
        int | None, _Count("The bytes that one call must read and write at least.", "bytes")
    ] = None
    replicas: Annotated[
        int | None,
        Whole("Calls in the timed series; in the long one, where a short series is subtracted."),
    ] = None
    cache_state: Annotated[
        str | None,
        Text(
            "`cold` when every call of the replay writes slots that are not in the L2, `hot` when all write "
            "the same, else `warm`."
        ),
    ] = None
    inputs_state: Annotated[
        str | None,
        Text(
            "`hot` when the calls of the replay read the same keys and values but for a few rows, `cold` "
            "when each reads some that are not in the L2."
        ),
    ] = None
    contract: Annotated[
        str | None,
        Text(
            "`full` where every clause of the contract holds, else the clauses that do not hold and those "
            "that the implementation refuses; None where this size was not checked."
        ),
    ] = None
    started_at: Annotated[str, Time("When the point was begun, ISO 8601 with the UTC offset.")] = ""
    samples_us: tuple[float, ...] = field(default=(), repr=False)
    machine: dict[str, Any] = field(default_factory=dict, repr=False)
    seconds: dict[str, float] = field(default_factory=dict, repr=False)
    environment: dict[str, Any] = field(default_factory=dict, repr=False)

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
        own = {name: getattr(self, name) for name in columns_of(Measurement)}
        latency = asdict(self.statistics) if self.statistics else {}
        case, about = asdict(self.case), self.seconds | self.machine | self.environment
        return {**dict.fromkeys(_ROW), **own, **latency, **case, **about, "schema": SCHEMA}


ENVIRONMENT, MACHINE, SECONDS = (tuple(columns_of(kind)) for kind in (Environment, Machine, Seconds))

_ROW = (
    *("status", "reason", *columns_of(Statistics)),
    *(column for kind in (Measurement, Case, Seconds, Machine, Environment) for column in columns_of(kind)),
)
"""The columns of every row in their order, some of them twice; the first place counts."""

COLUMNS: Mapping[str, Column] = dict.fromkeys(_ROW, ANY) | {
    # A row without a latency has none of the statistics.
    name: replace(column, optional=True) if kind is Statistics else column
    for kind in (Statistics, Measurement, Case, Seconds, Machine, Environment, Record)
    for name, column in columns_of(kind).items()
}
"""Every column that kvexp writes, as it is declared, in the order of a row."""
