"""How calls are launched: replayed from one CUDA graph, or one by one from Python."""

from collections.abc import Callable, Sequence

import torch

from kvexp.errors import Unsupported
from kvexp.op import Call


def check_mode(mode: str, device: str) -> None:
    """Check that the device has the mode.

    Raises:
        Unsupported: CUDA graphs were asked for on a CPU.
    """
    if mode == "cudagraph" and not device.startswith("cuda"):
        raise Unsupported(f"mode=cudagraph needs a GPU; on device={device} use mode=no_graph")


def prepare(mode: str, calls: Sequence[Call]) -> Call:
    """Make one call that makes all of `calls`, in order, on the current stream.

    For `cudagraph` the calls are captured, not run. One of each kind must have run before, so that nothing is
    compiled or loaded for the first time inside the capture.
    Besides an op's calls there may be others between them, such as the record of an event.
    """
    if mode == "cudagraph":
        return _capture(calls)

    def run() -> None:
        for call in calls:
            call()

    return run


def _capture(calls: Sequence[Call]) -> Call:
    """Capture the calls in a graph; where memory is short, free torch's cached memory and try once more."""
    graph = None
    try:
        graph = _capture_graph(calls)
    except RuntimeError as error:  # of torch: its allocator's or the driver's
        if "out of memory" not in str(error):
            raise
    if graph is None:
        # While it captures, torch can free neither its cache nor what a failed graph holds.
        torch.cuda.empty_cache()
        graph = _capture_graph(calls)
    replay: Callable[[], None] = graph.replay
    return replay


def _capture_graph(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """Capture the calls in a graph.

    torch.cuda.graph would first wait for the GPU and return all free memory to the driver.
    """
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    try:
        for call in calls:
            call()
    finally:
        graph.capture_end()
    return graph
