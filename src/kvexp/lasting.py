"""Imports that Python's collector of garbage leaves alone: what they make is no garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """What there is at its end stays for good, and is not looked at to find out, neither now nor later.

    torch and MLflow are some 300,000 objects each. While they are imported the collector would go through
    them again and again, for an eighth to a fifth of the time; and later for 0.1 s, in the middle of things.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
