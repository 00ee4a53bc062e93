"""Set nothing of the GPU's L2 aside for persisting lines while a call is timed: they would outlast the flush.

A kernel whose launch has an access-policy window keeps what it touches in the part of the L2 that is set
aside (CUDA Programming Guide, "L2 Cache Set-Aside for Persisting Accesses"). Where nothing is, the window has
no effect, and lines that persist are evicted as others are. Nothing here calls `cuCtxResetPersistingL2Cache`:
after it each node of a graph takes 0.17 to 0.32 us longer on an H200, for as long as the process lives.
"""

import torch

from kvexp.errors import KvexpError


def end_set_aside(device: torch.device) -> int:
    """Set aside nothing of the L2 any more, and return how many bytes were.

    Drivers set some aside by themselves. On a CPU, and where the GPU or its driver knows no such thing, it is
    0.

    Raises:
        KvexpError: The driver does not allow it.
    """
    if device.type == "cpu":
        return 0
    from cuda.bindings import driver

    limit = driver.CUlimit.CU_LIMIT_PERSISTING_L2_CACHE_SIZE
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # makes the context, which the limit belongs to
        error, found = driver.cuCtxGetLimit(limit)
        if error or not found:
            return 0
        (error,) = driver.cuCtxSetLimit(limit, 0)
    if error:
        raise KvexpError(
            f"{found} bytes of the L2 are set aside for persisting lines, so slots may not be cold, and "
            f"the driver does not let kvexp end that ({error.name})"
        )
    return int(found)
