"""Choose what timer=auto means on a device."""

from typing import Any

from kvexp.timer import Timer
from kvexp.timer.cuda_event import CudaEvent
from kvexp.timer.wall_clock import WallClock


def choose(device: str, **arguments: Any) -> Timer:
    """Make the timer that `experiment.MEANING` names for the device."""
    return (CudaEvent if device.startswith("cuda") else WallClock)(device, **arguments)
