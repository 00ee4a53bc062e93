import gc
import os
import signal

# Before torch is imported: its threads would wait for one another where tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# What is imported and collected stays; looking through it for garbage takes seconds in each process.
gc.disable()

if not torch.cuda.is_available():
    # Triton reads it when it decorates a kernel, so before anything imports one.
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As under nohup or a shell's `&`; what the tests start and then interrupt would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Begin the long tests first: no process is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish():
    """Collect garbage from here on, but for what was there before."""
    gc.freeze()
    gc.enable()
