"""Make a process end with its parent, and tell where it was when it had to."""

import contextlib
import ctypes
import faulthandler
import signal
import sys
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
