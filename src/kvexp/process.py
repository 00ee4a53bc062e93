"""Make a process end with its parent, and exempt large imports from garbage collection."""

import contextlib
import ctypes
import faulthandler
import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
OOM_SCORE_ADJ = "500"
"""Of -1000 to 1000: when the host runs out of memory, the kernel ends this process and not the parent."""


def die_with_parent() -> None:
    """Never outlive the parent, end before it when memory is short, and say on SIGUSR1 where it was."""
    faulthandler.enable()
    # The parent's way to ask a process that hangs, perhaps in a call of C, for its last words; then it ends.
    faulthandler.register(signal.SIGUSR1, chain=True)
    if sys.platform == "linux":
        # Even in the middle of a measurement.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJ)


@contextlib.contextmanager
def frozen_imports() -> Iterator[None]:
    """Exempt what is imported inside from garbage collection, now and later (gc.freeze).

    torch and MLflow are some 300,000 objects each. The collector would go through them again and again while
    they are imported, for an eighth to a fifth of the time, and later for 0.1 s in the middle of a run.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
