"""Predict from kernels alone by how much a layout changes a step: its writes and reads of all layers."""

from collections.abc import Mapping
from pathlib import Path

from kvexp.errors import ConfigError
from kvexp.measurement import Row
from kvexp.results import load

PARTS = {"write": "reshape_and_cache_flash", "read": "paged_decode"}


def predict(study: Path, first: str, other: str, layers: int, step_ms: float) -> str:
    """Say what the study's write and read of one layer, times the layers, are of a step.

    Args:
        study: A sweep's folder of `experiment=layout_study`.
        first: The layout that the other one is compared with.
        other: The other one.
        layers: Layers of the model.
        step_ms: What a step takes: the median time between two tokens.

    Raises:
        ConfigError: The study lacks one of them.
    """
    rows = [row for row in load.read([study], study) if row["status"] == "ok"]
    both = {part: _find_latencies(rows, op, (first, other)) for part, op in PARTS.items()}
    change_us = layers * sum(own[other] - own[first] for own in both.values())
    all_us = layers * sum(own[first] for own in both.values())
    change, part = (100 * us / (1e3 * step_ms) for us in (change_us, all_us))
    return (
        f"by kernels alone a step with {other} takes {change_us:+.1f} us more than with {first}: "
        f"{change:+.2f} % of a step of {step_ms:.1f} ms, of which writing and reading take {part:.1f} %"
    )


def _find_latencies(rows: list[Row], op: str, layouts: tuple[str, str]) -> Mapping[str, float]:
    """Return the latency of each layout at the most tokens at which the op was measured in both."""
    found = {
        layout: {
            row["num_tokens"]: row["latency_us"] for row in rows if (row["op"], row["layout"]) == (op, layout)
        }
        for layout in layouts
    }
    shared = set.intersection(*(set(own) for own in found.values()))
    if not shared:
        raise ConfigError(f"the study has no size of op={op} in both of {' and '.join(layouts)}")
    return {layout: own[max(shared)] for layout, own in found.items()}
