"""Where a sweep's curves are measured: this host as a whole, or each of several GPUs or workers."""

from collections.abc import Callable
from dataclasses import dataclass

from kvexp.host.process import LineChild
from kvexp.sweep.subprocess_worker import start_child


@dataclass(frozen=True)
class Place:
    """A place that measures one curve at a time.

    Attributes:
        name: What sentences call it.
        device: The device that its curves are measured on; empty leaves each curve its own.
        visible: The GPUs that its process sees, as CUDA_VISIBLE_DEVICES; empty for those that this one sees.
        start_child: Starts a measuring process there; where that cannot be, what it returns has ended.
    """

    name: str = "this host"
    device: str = ""
    visible: str = ""
    start_child: Callable[[], LineChild] = start_child


HERE = (Place(),)
"""The one place of a sweep that names none."""
