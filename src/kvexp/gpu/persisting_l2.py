"""Let no line persist in the GPU's L2 while a call is timed: it would outlast the flush.

A kernel whose launch has an access-policy window keeps what it touches in the part of the L2 that its process
has set aside for that (CUDA Programming Guide, "L2 Cache Set-Aside for Persisting Accesses").
"""

from typing import Any

from kvexp.errors import KvexpError


def end_set_aside() -> int | None:
    """Set aside nothing of the current GPU's L2 any more.

    Returns:
        The bytes that were set aside; None where the GPU or the driver knows no such thing.
    """
    from cuda.bindings import driver

    limit = driver.CUlimit.CU_LIMIT_PERSISTING_L2_CACHE_SIZE
    error, found = driver.cuCtxGetLimit(limit)
    if error:
        return None
    if found:
        (error,) = driver.cuCtxSetLimit(limit, 0)
        _check(error, "end the L2's set-aside for persisting lines")
        end_persistence()
    return int(found)


def end_persistence() -> None:
    """Make all persisting lines of the current GPU's L2 normal ones, which a flush evicts."""
    from cuda.bindings import driver

    (error,) = driver.cuCtxResetPersistingL2Cache()
    _check(error, "reset the persisting lines of the L2")


def _check(error: Any, what: str) -> None:
    if error:
        raise KvexpError(f"the driver cannot {what} ({error.name}), so the time would be of another L2")
