"""The host's time of an eager library call, in parts: `python -m tests.gpu.host_time`."""

import sys
import time

import torch

import kvexp
from kvexp.api.kinds import Known
from tests import law

CALLS = 400
"""So few that the launch queue of some 1,000 never fills."""

ROUNDS = 30


def least_us(call):
    """Microseconds of one call on the host, the median of the rounds; the GPU is waited for in between."""
    found = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - begin) / CALLS * 1e6)
    return sorted(found)[ROUNDS // 2]


def measured(impl, posed):
    """Microseconds of the whole call, of its launch alone, which is the bound call's, and of the rest."""
    function = getattr(kvexp, posed.op)
    arguments = posed.arguments

    def call():
        function(*arguments, impl=impl)

    call()
    bound = posed.bind(law.implementation(impl, str(posed.key.device)))
    bound()
    parts = {"call_us": least_us(call), "bound_us": least_us(bound)}
    (known,) = (c.cell_contents for c in function.__closure__ if isinstance(c.cell_contents, Known))
    there = [(kind, kind.launch) for alike in known.values() for kind in alike]
    try:
        for kind, _ in there:
            kind.launch = lambda *_: None
        parts["validation_us"] = least_us(call)
    finally:
        for kind, launch in there:
            kind.launch = launch
    return parts


if __name__ == "__main__":
    for op in (law.FLASH, law.DIFFKV, law.PAGED):
        for impl in ("cuda", "triton"):
            posed = law.problem("cuda:0", law.shuffled(32, 128), op=op, kv_cache_dtype="fp8")
            parts = measured(impl, posed)
            sys.stdout.write(f"{op} {impl} {' '.join(f'{k}={v:.2f}' for k, v in parts.items())}\n")
