"""How calls are launched: replayed from one CUDA graph, or one by one from Python."""

from collections.abc import Callable, Sequence

import torch

from kvexp.errors import Unsupported
from kvexp.op import Call


def check_mode(mode: str, device: str) -> None:
    """Returns when the device has the mode.

    Raises:
        Unsupported: CUDA graphs were asked for on a CPU.
    """
    if mode == "cudagraph" and not device.startswith("cuda"):
        raise Unsupported(f"mode=cudagraph needs a GPU; on device={device} use mode=no_graph")


def prepare(mode: str, calls: Sequence[Call]) -> Call:
    """One call that makes all of `calls`, in order, on the current stream.

    For `cudagraph` the calls are captured, not run: one of each kind must have run before, so that nothing is
    compiled or loaded for the first time inside the capture.

    Args:
        mode: `cudagraph` or `no_graph`.
        calls: An op's calls, and what is to lie between them, such as the record of an event.
    """
    if mode == "cudagraph":
        return _captured(calls)

    def run() -> None:
        for call in calls:
            call()

    return run


def _captured(calls: Sequence[Call]) -> Call:
    graph = None
    try:
        graph = _graph(calls)
    except RuntimeError as error:  # of torch: its allocator's or the driver's
        if "out of memory" not in str(error):
            raise
    if graph is None:
        # While it captures, torch cannot take back what it keeps for later; nor what a failed graph holds.
        torch.cuda.empty_cache()
        graph = _graph(calls)
    replay: Callable[[], None] = graph.replay
    return replay


def _graph(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """The calls captured. torch.cuda.graph would wait for the GPU first and give all free memory back to the
    driver, which what comes next would have to ask for again."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    try:
        for call in calls:
            call()
    finally:
        graph.capture_end()
    return graph
