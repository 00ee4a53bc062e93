"""Compute a round's figures and their differences, and write them as the seed's table does."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from examples.serving.serve import Served

LATENCIES = {
    "ttft_ms": ("Time to First Token", "TTFT"),
    "tpot_ms": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl_ms": ("Inter-token Latency", "ITL"),
}
STATISTICS = {"mean": "Mean", "median": "Median", "p99": "P99"}
COUNTS = {
    "requests": "Successful requests:",
    "duration_s": "Benchmark duration (s):",
    "input_tokens": "Total input tokens:",
    "generated_tokens": "Total generated tokens:",
    "requests_per_s": "Request throughput (req/s):",
    "generated_per_s": "Output token throughput (tok/s):",
    "tokens_per_s": "Total Token throughput (tok/s):",
}
WIDTH = 50
CONFIDENCE = 0.95
FEWEST_ROUNDS = 3
"""Rounds below which an interval is too wide to say anything."""

Figures = dict[str, float]


def compute(served: Sequence[Served]) -> Figures:
    """Compute the figures of one round of one layout."""
    begin = min(request.arrival_s for request in served)
    duration = max(request.times_s[-1] for request in served) - begin
    inputs = sum(len(request.prompt) for request in served)
    outputs = sum(len(request.tokens) for request in served)
    several = [request for request in served if len(request.times_s) > 1]
    gaps = [np.diff(request.times_s) for request in several]
    latencies = {
        "ttft_ms": np.array([request.times_s[0] - request.arrival_s for request in served]),
        "tpot_ms": np.array([own.mean() for own in gaps]),
        "itl_ms": np.concatenate(gaps) if gaps else np.array([]),
    }
    found: Figures = {
        "requests": len(served),
        "duration_s": duration,
        "input_tokens": inputs,
        "generated_tokens": outputs,
        "requests_per_s": len(served) / duration,
        "generated_per_s": outputs / duration,
        "tokens_per_s": (inputs + outputs) / duration,
    }
    for name, seconds in latencies.items():
        values = 1e3 * seconds if len(seconds) else np.array([0.0])
        found[f"mean_{name}"] = float(values.mean())
        found[f"median_{name}"] = float(np.median(values))
        found[f"p99_{name}"] = float(np.percentile(values, 99))
    return found


def format_table(figures: Mapping[str, float]) -> str:
    """Write the figures in the rows of the seed's table."""
    lines = [" Serving Benchmark Result ".center(WIDTH, "=")]
    lines += [_format_line(label, figures[name]) for name, label in COUNTS.items()]
    for name, (title, short) in LATENCIES.items():
        lines.append(title.center(WIDTH, "-"))
        lines += [
            _format_line(f"{word} {short} (ms):", figures[f"{statistic}_{name}"])
            for statistic, word in STATISTICS.items()
        ]
    return "\n".join([*lines, "=" * WIDTH])


def compare(rounds: Sequence[Mapping[str, Figures]], first: str, other: str, name: str) -> str:
    """Say how a layout's figure differs from the first layout's, over the rounds that have both.

    Args:
        rounds: Of each round the figures by layout.
        first: The layout that the other one is compared with.
        other: The other one.
        name: The figure.
    """
    ratios = [
        math.log(one[other][name] / one[first][name]) for one in rounds if first in one and other in one
    ]
    what = f"{other} against {first}, {name}"
    if len(ratios) < FEWEST_ROUNDS:
        return f"{what}: rounds={len(ratios)} is too few to tell; take {FEWEST_ROUNDS} or more"
    mean = float(np.mean(ratios))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(ratios) - 1)) * float(stats.sem(ratios))
    low, middle, high = (100 * math.expm1(value) for value in (mean - half, mean, mean + half))
    if low <= 0 <= high:
        return f"{what}: none found; would have seen {max(-low, high):.2g} % ({len(ratios)} rounds)"
    return f"{what}: {middle:+.2f} % ({low:+.2f} to {high:+.2f} %, {len(ratios)} rounds)"


def _format_line(label: str, value: float) -> str:
    text = f"{value:,}".replace(",", "") if isinstance(value, int) else f"{value:.2f}"
    return f"{label:<40}{text:<10}".rstrip()
