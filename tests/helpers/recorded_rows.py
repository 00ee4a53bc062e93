"""Make rows and sweeps' folders as a measurement on a GPU leaves them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvexp.case import Case
from kvexp.measurement import SCHEMA
from kvexp.results.labels import CURVE
from kvexp.results.plan import PLAN

_CASE = Case(
    op="reshape_and_cache_flash",
    impl="cuda",
    impl_options="{}",
    layout="NHD",
    dtype="bfloat16",
    kv_cache_dtype="auto",
    scale="per_tensor",
    mode="cudagraph",
    timer="cuda_event",
    timer_options='{"min_samples":20}',
    device="cuda:0",
    num_tokens=64,
    num_heads=8,
    head_size=128,
    head_size_v=128,
    block_size=16,
    num_blocks=4096,
    num_query_heads=8,
    workload="seed",
)
_MACHINE = {
    "device_name": "NVIDIA H200",
    "device_uuid": "GPU-1",
    "driver": "580.1",
    "host": "h",
    "torch": "2.11",
}


def row(latency_us: float = 10.0, **columns: Any) -> dict[str, Any]:
    """Make an `ok` row with an interval of ± 0.2 %; further columns replace its own."""
    made = {
        "status": "ok",
        "reason": "",
        "latency_us": latency_us,
        "latency_us_low": 0.998 * latency_us,
        "latency_us_high": 1.002 * latency_us,
        "latency_us_p20": 0.99 * latency_us,
        "latency_us_p80": 1.01 * latency_us,
        "gb_per_s": 100.0,
        "copy_us": 5.0,
        "copy_fraction": 5.0 / latency_us,
        "empty_kernel_us": 0.5,
        "bytes_moved": 1000,
        "samples": 20,
        "started_at": "2026-11-21T10:00:00.000+00:00",
        **_CASE.columns(),
        **_MACHINE,
        "schema": SCHEMA,
    }
    return made | columns


def refused(status: str, reason: str, **columns: Any) -> dict[str, Any]:
    """Make a row without a latency."""
    numbers = [name for name in row() if name.startswith("latency")]
    return row(status=status, reason=reason) | dict.fromkeys([*numbers, "copy_us", "copy_fraction"]) | columns


def curve(latencies: Mapping[int, float], **columns: Any) -> list[dict[str, Any]]:
    """Make a row for each num_tokens with its latency in µs."""
    return [row(latency, num_tokens=size, **columns) for size, latency in latencies.items()]


def sweep(folder: Path, curves: Sequence[Sequence[Mapping[str, Any]]]) -> Path:
    """Make a sweep's folder with a job for each curve, and the overrides that Hydra records."""
    for number, rows in enumerate(curves):
        job = folder / str(number)
        (job / ".hydra").mkdir(parents=True)
        (job / ".hydra" / "overrides.yaml").write_text(
            f"- impl={rows[0]['impl']}\n- 'workload.num_tokens=[1,2]'\n"
        )
        (job / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def plan(home: Path, number: int, num_tokens: Sequence[int], repeat: int = 1, **columns: Any) -> None:
    """Add the plan of a job to a sweep's folder, as it is before anything is measured."""
    made = row(**columns)
    file = home / str(number) / PLAN
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "curve": {column: made[column] for column in CURVE},
        "num_tokens": num_tokens,
        "repeat": repeat,
    }
    file.write_text(json.dumps(content))
