"""Compare with the memory bandwidth that a GPU's data sheet states."""

from kvexp.measurement import Row
from kvexp.report.curves import Machine
from kvexp.report.format import number, percent, tokens

BANDWIDTHS = {
    "NVIDIA H200": 4800.0,  # https://www.nvidia.com/en-us/data-center/h200/
    "NVIDIA H100 80GB HBM3": 3350.0,  # https://www.nvidia.com/en-us/data-center/h100/
}
"""In 10^9 bytes a second, by the driver's name of the GPU."""


def compare_with_data_sheet(machine: Machine) -> str:
    """Say which share of the data sheet's bandwidth is reached at most; empty where that says nothing.

    It says something only of points whose counted bytes must all cross the memory's bus.
    """
    stated = BANDWIDTHS.get(str(machine.row.get("device_name")))
    points = [
        (row["gb_per_s"], line, row) for line in machine.ranked for row in line.points if _must_cross(row)
    ]
    if not stated or not points:
        return ""
    reached, line, row = max(points, key=lambda point: point[0])
    return (
        f"Of the {number(stated)} GB/s of the data sheet {line.label} reaches {percent(reached / stated)} at "
        f"{tokens(row['num_tokens'])}, the most of points whose bytes must all cross the memory's bus."
    )


def _must_cross(row: Row) -> bool:
    """Return whether neither what a call reads nor what it writes can be in the L2, nor both fit it."""
    is_cold = row.get("inputs_state") == row.get("cache_state") == "cold"
    fits = (row.get("bytes_moved") or 0) <= (row.get("l2_bytes") or 0)
    return is_cold and not fits and row.get("gb_per_s") is not None and row.get("l2_bytes") is not None
